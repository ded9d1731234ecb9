#include "team.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

#define SPINS 1000 /* some 50 microseconds (a pause takes 140 cycles), then let another thread have the core */

struct team {
    int n;
    pthread_t *threads;
    struct worker *workers;

    /* Jobs: the generation is what sleeping workers wait for. */
    pthread_mutex_t lock;
    pthread_cond_t wake;
    atomic_uint generation;
    atomic_int busy; /* workers other than 0 that still run the job */
    bool quit;
    void (*fn)(struct worker *, void *);
    void *arg;

    _Alignas(64) atomic_int arrived;
    _Alignas(64) atomic_uint sense;
    _Alignas(64) atomic_int next;
};

static inline void pause_or_yield(unsigned *spins) {
    if (++*spins < SPINS) {
#if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        __asm__ volatile("yield");
#endif
    } else {
        sched_yield();
    }
}

void team_barrier(struct worker *w) {
    struct team *t = w->team;
    unsigned sense = w->sense ^= 1;
    if (atomic_fetch_add_explicit(&t->arrived, 1, memory_order_acq_rel) == t->n - 1) {
        atomic_store_explicit(&t->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&t->next, 0, memory_order_relaxed);
        atomic_store_explicit(&t->sense, sense, memory_order_release);
        return;
    }
    unsigned spins = 0;
    while (atomic_load_explicit(&t->sense, memory_order_acquire) != sense) pause_or_yield(&spins);
}

int team_next(struct worker *w) {
    return atomic_fetch_add_explicit(&w->team->next, 1, memory_order_relaxed);
}

void worker_range(const struct worker *w, int n, int align, int *begin, int *end) {
    long steps = (n + align - 1) / align;
    long b = steps * w->id / w->n * align, e = steps * (w->id + 1) / w->n * align;
    *begin = b < n ? (int)b : n;
    *end = e < n ? (int)e : n;
}

static void *worker_main(void *arg) {
    struct worker *w = arg;
    struct team *t = w->team;
    unsigned seen = 0;
    for (;;) {
        unsigned spins = 0;
        while (atomic_load_explicit(&t->generation, memory_order_acquire) == seen && spins < SPINS)
            pause_or_yield(&spins);
        pthread_mutex_lock(&t->lock);
        while (atomic_load_explicit(&t->generation, memory_order_acquire) == seen)
            pthread_cond_wait(&t->wake, &t->lock);
        seen = atomic_load_explicit(&t->generation, memory_order_acquire);
        bool quit = t->quit;
        pthread_mutex_unlock(&t->lock);
        if (quit) return NULL;
        t->fn(w, t->arg);
        atomic_fetch_sub_explicit(&t->busy, 1, memory_order_release);
    }
}

static void post(struct team *t) {
    pthread_mutex_lock(&t->lock);
    atomic_fetch_add_explicit(&t->generation, 1, memory_order_release);
    pthread_cond_broadcast(&t->wake);
    pthread_mutex_unlock(&t->lock);
}

void team_run(struct team *t, void (*fn)(struct worker *, void *), void *arg) {
    t->fn = fn;
    t->arg = arg;
    atomic_store_explicit(&t->next, 0, memory_order_relaxed);
    atomic_store_explicit(&t->busy, t->n - 1, memory_order_relaxed);
    if (t->n > 1) post(t);
    fn(&t->workers[0], arg);
    unsigned spins = 0;
    while (atomic_load_explicit(&t->busy, memory_order_acquire) != 0) pause_or_yield(&spins);
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
    for (int i = 0; i < n_threads; i++) t->workers[i] = (struct worker){.id = i, .n = n_threads, .team = t};
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
