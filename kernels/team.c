#include "team.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

#define SPINS 2000 /* some 100 microseconds: a pause takes 140 cycles */

struct team {
    int n;
    pthread_t *threads;
    struct worker *workers;

    /* Those that have waited for long sleep until the condition is signalled. */
    pthread_mutex_t lock;
    pthread_cond_t wake;
    atomic_int sleepers;

    atomic_uint generation; /* counts jobs */
    atomic_uint busy;       /* workers other than 0 that still run the job */
    bool quit;
    void (*fn)(struct worker *, void *);
    void *arg;

    /* On one cache line, which the last to arrive has in its core's cache when it lets the others go. */
    _Alignas(64) atomic_int arrived;
    atomic_bool measured; /* a worker's speed, since the last barrier */
    atomic_uint sense;
    _Alignas(64) atomic_int next;
};

static inline void pause_briefly(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Returns once *word is `value`. Spins, which is the fastest where every worker has a core of its own; but when
 * another program has a worker's core, those that wait for it must not take the time that it needs. */
static void wait_for(struct team *t, atomic_uint *word, unsigned value) {
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load_explicit(word, memory_order_acquire) == value) return;
        pause_briefly();
    }
    pthread_mutex_lock(&t->lock);
    atomic_fetch_add(&t->sleepers, 1);
    while (atomic_load(word) != value) pthread_cond_wait(&t->wake, &t->lock);
    atomic_fetch_sub(&t->sleepers, 1);
    pthread_mutex_unlock(&t->lock);
}

/* After a word has changed, with a sequentially consistent operation: a sleeper counts itself before it looks at
 * the word for the last time, so one that missed the change is seen here. */
static void wake_sleepers(struct team *t) {
    if (atomic_load(&t->sleepers) == 0) return;
    pthread_mutex_lock(&t->lock);
    pthread_cond_broadcast(&t->wake);
    pthread_mutex_unlock(&t->lock);
}

/* A measurement counts for an eighth, and for no more than twice or half of what was expected: a worker whose core
 * was taken away for a moment will have it back. */
static double smooth(double speed, double measured) {
    if (speed <= 0) return measured;
    double likely = measured > 2 * speed ? 2 * speed : measured < speed / 2 ? speed / 2 : measured;
    return speed + (likely - speed) / 8;
}

/* Every worker's share by its speed, evenly until all have been measured. */
static void share_out(struct team *t) {
    double sum = 0, before = 0;
    for (int i = 0; i < t->n; i++) {
        struct worker *w = &t->workers[i];
        if (w->measured > 0) w->speed = smooth(w->speed, w->measured);
        w->measured = 0;
        if (w->speed <= 0) return;
        sum += w->speed;
    }
    for (int i = 0; i < t->n; i++) {
        struct worker *w = &t->workers[i];
        w->from = before;
        w->to = before = i + 1 < t->n ? before + w->speed / sum : 1;
    }
}

void team_barrier(struct worker *w) {
    struct team *t = w->team;
    unsigned sense = w->sense ^= 1;
    if (atomic_fetch_add_explicit(&t->arrived, 1, memory_order_acq_rel) == t->n - 1) {
        atomic_store_explicit(&t->arrived, 0, memory_order_relaxed);
        /* Unless it was used, its line stays in all caches: to write it takes a fifth of a barrier between chips. */
        if (atomic_load_explicit(&t->next, memory_order_relaxed))
            atomic_store_explicit(&t->next, 0, memory_order_relaxed);
        if (atomic_load_explicit(&t->measured, memory_order_relaxed)) {
            atomic_store_explicit(&t->measured, false, memory_order_relaxed);
            share_out(t);
        }
        atomic_store(&t->sense, sense);
        wake_sleepers(t);
        return;
    }
    for (; w->soon < w->soon_end; w->soon += 64) {
        if (atomic_load_explicit(&t->sense, memory_order_acquire) == sense) return;
        __builtin_prefetch(w->soon, 0, 2);
    }
    wait_for(t, &t->sense, sense);
}

int team_next(struct worker *w) {
    return atomic_fetch_add_explicit(&w->team->next, 1, memory_order_relaxed);
}

void team_done(struct worker *w, struct team_count *count) {
    atomic_fetch_add(&count->n, 1);
    wake_sleepers(w->team);
}

void team_await(struct worker *w, struct team_count *count, int n) {
    wait_for(w->team, &count->n, (unsigned)n);
}

void worker_range(const struct worker *w, int n, int align, int *begin, int *end) {
    long steps = (n + align - 1) / align;
    long b = steps * w->id / w->n * align, e = steps * (w->id + 1) / w->n * align;
    *begin = b < n ? (int)b : n;
    *end = e < n ? (int)e : n;
}

void worker_share(const struct worker *w, int n, int align, int *begin, int *end) {
    long steps = (n + align - 1) / align;
    long b = (long)((double)steps * w->from) * align, e = (long)((double)steps * w->to) * align;
    *begin = b < n ? (int)b : n;
    *end = e < n ? (int)e : n;
}

void worker_measured(struct worker *w, double speed) {
    w->measured = speed;
    atomic_store_explicit(&w->team->measured, true, memory_order_relaxed);
}

static void *worker_main(void *arg) {
    struct worker *w = arg;
    struct team *t = w->team;
    for (unsigned job = 1;; job++) {
        wait_for(t, &t->generation, job);
        if (t->quit) return NULL;
        t->fn(w, t->arg);
        atomic_fetch_sub(&t->busy, 1);
        wake_sleepers(t);
    }
}

static void post(struct team *t) {
    atomic_fetch_add(&t->generation, 1);
    wake_sleepers(t);
}

void team_run(struct team *t, void (*fn)(struct worker *, void *), void *arg) {
    t->fn = fn;
    t->arg = arg;
    atomic_store_explicit(&t->next, 0, memory_order_relaxed);
    atomic_store_explicit(&t->busy, (unsigned)t->n - 1, memory_order_relaxed);
    if (t->n > 1) post(t);
    fn(&t->workers[0], arg);
    wait_for(t, &t->busy, 0);
}

struct team *team_create(int n_threads, struct error *err) {
    struct team *t = aligned_alloc(64, (sizeof *t + 63) / 64 * 64);
    if (!t) {
        fail(err, "out of memory for %d threads", n_threads);
        return NULL;
    }
    *t = (struct team){.n = n_threads};
    t->workers = calloc((size_t)n_threads, sizeof *t->workers);
    t->threads = calloc((size_t)n_threads, sizeof *t->threads);
    if (!t->workers || !t->threads) {
        fail(err, "out of memory for %d threads", n_threads);
        free(t->workers);
        free(t->threads);
        free(t);
        return NULL;
    }
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->wake, NULL);
    for (int i = 0; i < n_threads; i++)
        t->workers[i] = (struct worker){.id = i, .n = n_threads, .team = t, .from = (double)i / n_threads,
                                        .to = (double)(i + 1) / n_threads};
    for (int i = 1; i < n_threads; i++) {
        if (pthread_create(&t->threads[i], NULL, worker_main, &t->workers[i])) {
            fail(err, "can't start thread %d of %d: ask for fewer with -t", i + 1, n_threads);
            t->n = i;
            team_free(t);
            return NULL;
        }
    }
    return t;
}

void team_free(struct team *t) {
    if (!t) return;
    t->quit = true;
    post(t);
    for (int i = 1; i < t->n; i++) pthread_join(t->threads[i], NULL);
    pthread_mutex_destroy(&t->lock);
    pthread_cond_destroy(&t->wake);
    free(t->threads);
    free(t->workers);
    free(t);
}

int team_size(const struct team *t) { return t->n; }
