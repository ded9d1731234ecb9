/* attend.c - speed of attention's inner loops alone, as CSV: for each table and
 * cache type, prompts in giga multiply-adds a second, decoding in gigabytes of
 * keys and values a second, one thread.
 *
 *     bench-attend [head size] [group] */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "../kernels/attend.h"
#include "../kernels/kernels.h"

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *alloc(size_t bytes) {
    void *p = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!p) abort();
    return p;
}

static float noise(void) { return (float)rand() / (float)RAND_MAX - 0.5f; }

enum { N = 1 << 16, PANEL = 1024, ROWS = 192, REPEATS = 5 };

static struct kv_view make_entries(enum kv_type type, int d) {
    struct kv_view kv = {.d = d, .type_k = type, .type_v = type};
    kv.k_row_bytes = kv.v_row_bytes = kv_row_bytes(type, d);
    uint8_t *k = alloc(kv.k_row_bytes * N), *v = alloc(kv.v_row_bytes * N);
    for (size_t i = 0; i < N; i++) {
        float x[KV_MAX_DIM];
        for (int c = 0; c < d; c++) x[c] = noise();
        kv_row_store(type, d, x, k + i * kv.k_row_bytes);
        kv_row_store(type, d, x, v + i * kv.v_row_bytes);
    }
    kv.k = k;
    kv.v = v;
    return kv;
}

/* The best of some repetitions, in seconds. */
static double time_prompt(const struct attend_kernels *a, const struct kv_view *kv,
                          const struct attend_row *rows) {
    size_t bytes = a->block_bytes(kv->d);
    char *blocks = alloc(bytes * (PANEL / ATTEND_BLOCK));
    double best = 1e9;
    for (int i = 0; i < PANEL / ATTEND_BLOCK; i++)
        a->pack(kv, i * ATTEND_BLOCK, ATTEND_BLOCK, blocks + (size_t)i * bytes);
    for (int repeat = 0; repeat < 4 * REPEATS; repeat++) {
        double start = seconds();
        a->rows(kv->d, blocks, 0, PANEL, rows, ROWS);
        if (seconds() - start < best) best = seconds() - start;
    }
    free(blocks);
    return best;
}

static double time_decode(const struct attend_kernels *a, const struct kv_view *kv,
                          const struct attend_row *rows, int group) {
    double best = 1e9;
    for (int repeat = 0; repeat < REPEATS; repeat++) {
        double start = seconds();
        a->range(kv, 0, N, rows, group);
        if (seconds() - start < best) best = seconds() - start;
    }
    return best;
}

int main(int argc, char **argv) {
    int d = argc > 1 ? atoi(argv[1]) : 64, group = argc > 2 ? atoi(argv[2]) : 3;
    if (d < 1 || d > KV_MAX_DIM || group < 1 || group > ROWS) {
        fprintf(stderr, "usage: bench-attend [head size] [group]\n");
        return 2;
    }
    static const char *const isas[] = {"c", "avx2", "avx512", "avx512vnni", "neon"};
    static const char *const types[] = {"f32", "f16", "q8_0", "q4_0"};
    float *q = alloc(sizeof *q * (size_t)(ROWS * d));
    float *states = alloc(sizeof *states * (size_t)(ROWS * ATTEND_STATE(d)));
    struct attend_row rows[ROWS];
    for (int i = 0; i < ROWS * d; i++) q[i] = noise();
    for (int r = 0; r < ROWS; r++) {
        rows[r] = (struct attend_row){.q = q + r * d, .state = states + r * ATTEND_STATE(d), .limit = N};
        attend_init(rows[r].state, d);
    }
    printf("isa,exact,kv_type,prompt_gmacs,decode_gbs,decode_ns_per_entry\n");
    for (size_t i = 0; i < sizeof isas / sizeof *isas; i++) {
        if (!kernels_select(isas[i], NULL)) continue;
        for (int exact = 1; exact >= 0; exact--) {
            const struct attend_kernels *a = attend_select(isas[i], exact);
            if (!exact && a == attend_select(isas[i], true)) continue;
            for (int type = 0; type < 4; type++) {
                struct kv_view kv = make_entries((enum kv_type)type, d);
                double prompt = time_prompt(a, &kv, rows), decode = time_decode(a, &kv, rows, group);
                double bytes = (double)(kv.k_row_bytes + kv.v_row_bytes) * N;
                printf("%s,%d,%s,%.1f,%.2f,%.2f\n", isas[i], exact, types[type],
                       2e-9 * PANEL * ROWS * d / prompt, 1e-9 * bytes / decode, 1e9 * decode / N);
                free((void *)kv.k);
                free((void *)kv.v);
            }
        }
    }
    free(q);
    free(states);
    return 0;
}
