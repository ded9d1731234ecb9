#include "attend_internal.h"

#include <math.h>
#include <string.h>

void attend_init(float *state, int d) {
    memset(state, 0, sizeof *state * (size_t)ATTEND_STATE(d));
    state[ATTEND_MAX] = -INFINITY;
}

void attend_merge(float *state, const float *other, int d) {
    if (other[ATTEND_MAX] == -INFINITY) return;
    float max = fmaxf(state[ATTEND_MAX], other[ATTEND_MAX]);
    float a = expf(state[ATTEND_MAX] - max), b = expf(other[ATTEND_MAX] - max);
    state[ATTEND_MAX] = max;
    state[ATTEND_SUM] = state[ATTEND_SUM] * a + other[ATTEND_SUM] * b;
    for (int c = ATTEND_ACC; c < ATTEND_ACC + d; c++) state[c] = state[c] * a + other[c] * b;
}

void attend_finish(const float *state, int d, float *out) {
    float scale = state[ATTEND_SUM] > 0 ? 1 / state[ATTEND_SUM] : 0;
    for (int c = 0; c < d; c++) out[c] = state[ATTEND_ACC + c] * scale;
}

/* ---- plain C ----------------------------------------------------------------- */

static float dot(const float *x, const float *y, int n) {
    float sum = 0;
    for (int i = 0; i < n; i++) sum += x[i] * y[i];
    return sum;
}

/* One row attends to one entry. */
static void attend_entry(int d, float score, const float *v, float *state) {
    float *acc = state + ATTEND_ACC;
    if (score > state[ATTEND_MAX]) {
        float shrink = expf(state[ATTEND_MAX] - score);
        state[ATTEND_MAX] = score;
        state[ATTEND_SUM] *= shrink;
        for (int c = 0; c < d; c++) acc[c] *= shrink;
    }
    float p = expf(score - state[ATTEND_MAX]);
    state[ATTEND_SUM] += p;
    for (int c = 0; c < d; c++) acc[c] += p * v[c];
}

static void range_c(const struct kv_view *kv, int begin, int end, const struct attend_row *rows, int m) {
    float k[KV_MAX_DIM], v[KV_MAX_DIM];
    for (int i = begin; i < end; i++) {
        kv_row_load(kv->type_k, kv->d, kv->k + (size_t)i * kv->k_row_bytes, k);
        kv_row_load(kv->type_v, kv->d, kv->v + (size_t)i * kv->v_row_bytes, v);
        for (int r = 0; r < m; r++)
            if (i < rows[r].limit) attend_entry(kv->d, dot(rows[r].q, k, kv->d), v, rows[r].state);
    }
}

static void list_c(const struct kv_view *kv, const int *index, const float *scores, int n, float *state) {
    float v[KV_MAX_DIM];
    for (int i = 0; i < n; i++) {
        kv_row_load(kv->type_v, kv->d, kv->v + (size_t)index[i] * kv->v_row_bytes, v);
        attend_entry(kv->d, scores[i], v, state);
    }
}

static void scores_c(const struct kv_view *kv, int begin, int end, const float *q, size_t q_stride, int m,
                     float *scores, size_t stride) {
    float k[KV_MAX_DIM];
    for (int i = begin; i < end; i++) {
        kv_row_load(kv->type_k, kv->d, kv->k + (size_t)i * kv->k_row_bytes, k);
        for (int r = 0; r < m; r++)
            scores[(size_t)r * stride + (size_t)(i - begin)] = dot(q + (size_t)r * q_stride, k, kv->d);
    }
}

static void score_list_c(const struct kv_view *kv, const int *index, int n, const float *q, size_t q_stride,
                         int m, float *scores, size_t stride) {
    for (int i = 0; i < n; i++) scores_c(kv, index[i], index[i] + 1, q, q_stride, m, scores + i, stride);
}

static void add_softmax_c(float *scores, int n, float scale, float *sums) {
    float max = scores[0], total = 0;
    for (int i = 1; i < n; i++) max = fmaxf(max, scores[i]);
    for (int i = 0; i < n; i++) total += scores[i] = expf(scores[i] - max);
    for (int i = 0; i < n; i++) sums[i] += scores[i] * (scale / total);
}

/* A block is float k[ATTEND_BLOCK][d], v[ATTEND_BLOCK][d]. */
static size_t block_bytes_c(int d) { return sizeof(float) * 2 * ATTEND_BLOCK * (size_t)d; }

static void pack_c(const struct kv_view *kv, int begin, int n, void *block) {
    float *k = block, *v = k + ATTEND_BLOCK * kv->d;
    for (int i = 0; i < n; i++) {
        size_t entry = (size_t)(begin + i);
        kv_row_load(kv->type_k, kv->d, kv->k + entry * kv->k_row_bytes, k + i * kv->d);
        kv_row_load(kv->type_v, kv->d, kv->v + entry * kv->v_row_bytes, v + i * kv->d);
    }
}

static void rows_c(int d, const void *blocks, int begin, int n, const struct attend_row *rows, int m) {
    for (int i = 0; i < n; i++) {
        size_t floats = 2 * ATTEND_BLOCK * (size_t)d;
        const float *block = (const float *)blocks + (size_t)(i / ATTEND_BLOCK) * floats;
        const float *k = block + i % ATTEND_BLOCK * d, *v = k + ATTEND_BLOCK * d;
        for (int r = 0; r < m; r++)
            if (begin + i < rows[r].limit) attend_entry(d, dot(rows[r].q, k, d), v, rows[r].state);
    }
}

const struct attend_kernels attend_c = {
    .isa = "c",
    .store = kv_row_store,
    .load = kv_row_load,
    .range = range_c,
    .list = list_c,
    .scores = scores_c,
    .score_list = score_list_c,
    .add_softmax = add_softmax_c,
    .pack = pack_c,
    .block_bytes = block_bytes_c,
    .rows = rows_c,
};

/* ---- choice ------------------------------------------------------------------- */

static const struct {
    const char *isa;
    const struct attend_kernels *exact, *fast;
} choices[] = {
    {"c", &attend_c, &attend_c},
#if defined(__x86_64__) || defined(__i386__)
    {"avx2", &attend_avx2, &attend_fast_avx2},
    {"avx512", &attend_avx512, &attend_avx512},
    {"avx512vnni", &attend_avx512, &attend_avx512vnni},
    {"amx", &attend_avx512, &attend_avx512vnni},
#elif defined(__aarch64__)
    {"neon", &attend_neon, &attend_neon},
    {"neondot", &attend_neon, &attend_neon},
#endif
};

const struct attend_kernels *attend_select(const char *isa, bool exact) {
    for (size_t i = 0; i < sizeof choices / sizeof *choices; i++)
        if (!strcmp(choices[i].isa, isa)) return exact ? choices[i].exact : choices[i].fast;
    return &attend_c;
}
