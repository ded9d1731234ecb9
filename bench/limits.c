/* limits.c - what this machine can do at most: the yardstick for speeds.
 *
 *     bench-limits [-t THREADS]
 *
 * Prints CSV: GB/s read from memory, and 8-bit GOPS (two operations per
 * multiply-add) of the widest vector instructions that this knows, by all
 * threads at once; the best of many short rounds. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../arena.h"
#include "../kernels/team.h"

#define BYTES (512u << 20) /* read in a round, more than caches hold */
#define AHEAD 512          /* 8-byte words: as far as prefetching pays */
#define LOOPS 1000000      /* of the arithmetic, in a round */
#define SECONDS 0.5        /* for each figure */

#ifdef __x86_64__
#include <immintrin.h>

#define EACH(op) op(0) op(1) op(2) op(3) op(4) op(5) op(6) op(7) op(8) op(9) op(10) op(11)

/* Both return multiply-adds done. Twelve independent chains hide the latency;
 * assembly, so that nothing else is in the loop. */
__attribute__((target("avx512f,avx512vnni"))) static double vnni_loop(void) {
#define OPERAND(i) __m512i s##i = _mm512_setzero_si512();
#define STEP(i) __asm__ volatile("vpdpbusd %2, %1, %0" : "+v"(s##i) : "v"(a), "v"(b));
    __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(-2);
    EACH(OPERAND)
    for (int n = 0; n < LOOPS; n++) {
        EACH(STEP)
    }
#undef OPERAND
#undef STEP
    return 12.0 * 64 * LOOPS;
}

__attribute__((target("avx2"))) static double avx2_loop(void) {
#define OPERAND(i) __m256i s##i = _mm256_setzero_si256();
#define STEP(i)                                                             \
    __asm__ volatile("vpmaddubsw %2, %1, %%ymm15\n\tvpaddw %%ymm15, %0, %0" \
                     : "+x"(s##i)                                           \
                     : "x"(a), "x"(b)                                       \
                     : "xmm15");
    __m256i a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(-2);
    EACH(OPERAND)
    for (int n = 0; n < LOOPS; n++) {
        EACH(STEP)
    }
#undef OPERAND
#undef STEP
    return 12.0 * 32 * LOOPS;
}

static double arithmetic(void) {
    if (__builtin_cpu_supports("avx512vnni")) return vnni_loop();
    return __builtin_cpu_supports("avx2") ? avx2_loop() : 0;
}
#else
static double arithmetic(void) { return 0; }
#endif

struct job {
    const uint64_t *data;
    double multiply_adds; /* of one worker */
};

static void read_all(struct worker *w, void *arg) {
    struct job *job = arg;
    int begin, end;
    worker_range(w, BYTES / sizeof *job->data, 8, &begin, &end);
    uint64_t sum[8] = {0};
    for (int i = begin; i < end; i += 8) {
        __builtin_prefetch(job->data + i + AHEAD, 0, 2);
        for (int j = 0; j < 8; j++) sum[j] += job->data[i + j];
    }
    for (int j = 0; j < 8; j++) __asm__ volatile("" : : "r"(sum[j]));
}

static void compute(struct worker *w, void *arg) {
    struct job *job = arg;
    double n = arithmetic();
    if (w->id == 0) job->multiply_adds = n;
}

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static double fastest(struct team *team, void (*fn)(struct worker *, void *), struct job *job) {
    double best = 1e9, until = seconds() + SECONDS;
    do {
        double t = seconds();
        team_run(team, fn, job);
        t = seconds() - t;
        if (t < best) best = t;
    } while (seconds() < until);
    return best;
}

int main(int argc, char **argv) {
    int threads = argc > 2 && !strcmp(argv[1], "-t") ? atoi(argv[2]) : 2;
    struct error err;
    struct team *team = team_create(threads > 0 ? threads : 1, &err);
    struct arena arena;
    if (!team || arena_create(&arena, BYTES)) {
        fprintf(stderr, "%s\n", team ? "out of memory" : err.text);
        return 1;
    }
    memset(arena.data, 1, BYTES);
    struct job job = {.data = arena.data};
    double read = BYTES / fastest(team, read_all, &job) * 1e-9;
    double t = fastest(team, compute, &job);
    printf("threads,read_gbs,int8_gops\n%d,%.1f,%.0f\n", team_size(team), read,
           2 * job.multiply_adds * team_size(team) / t * 1e-9);
    team_free(team);
    arena_free(&arena);
    return 0;
}
