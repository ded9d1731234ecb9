/* attend_few.h - range(), list(), scores(), score_list() and add_softmax() of attend.h for any vector width.
 *
 * A file before it, attend_float.h or attend_int.h, names the two products of a block of entries:
 *
 *     QK(type, R, e)  e->p[r][i] = e->q[r] . k_i
 *     PV(type, R, e)  e->acc[r] = e->acc[r] * e->shrink[r] + sum of e->p[r][i] v_i
 */
#pragma once

#include "attend_pass.h"
#include "prefetch.h"

/* Bytes of keys, and of values, for ASKS_AHEAD. */
#define AHEAD 6144 /* more would not stay in the first-level cache */
#define AHEAD_ZEN5 4096 /* and twice that: asking twice is faster for q8_0, but not for f16 and q4_0 */
#define AHEAD_ZEN4 16384 /* in the second-level cache: the first waits for few lines at a time, and reads with them */

/* Scores of row r's first `seen` entries become weights; the others get none.
 * Brings max and sum of its state up to date, and finds what shrinks its sums. */
static void softmax_entries(struct entries *e, int r, int seen, float *state) {
    float *p = e->p[r];
    if (seen <= 0) {
        memset(p, 0, sizeof e->p[r]);
        e->largest[r] = 0;
        e->shrink[r] = 1;
        return;
    }
    const int n = padded(e->n);
    for (int i = seen; i < n; i++) p[i] = NEVER;
    vec top = v_load(p);
    for (int i = LANES; i < n; i += LANES) top = v_max(top, v_load(p + i));
    float old = state[ATTEND_MAX], max = v_max_lane(top);
    if (max < old) max = old;
    vec shift = v_set(max), sum = v_zero(), most = v_zero();
    for (int i = 0; i < n; i += LANES) {
        vec w = v_exp(v_sub(v_load(p + i), shift));
        sum = v_add(sum, w);
        most = v_max(most, w);
        v_store(p + i, w);
    }
    float shrink = max > old ? expf(old - max) : 1;
    e->shrink[r] = shrink;
    e->largest[r] = v_max_lane(most);
    state[ATTEND_MAX] = max;
    state[ATTEND_SUM] = state[ATTEND_SUM] * shrink + v_sum(sum);
}

static size_t whole_rows(size_t bytes, size_t row_bytes) {
    return row_bytes ? bytes / row_bytes * row_bytes : 0; /* 0: keys or values that nobody reads */
}

/* What to prefetch while rows up to `end` are read in order, and `next` then. */
static struct rows_ahead rows_ahead(enum kv_type type, const uint8_t *end, size_t row_bytes, const uint8_t *next) {
    struct rows_ahead ahead = {.near = AHEAD, .end = end, .next = next};
    if (type == KV_Q8_0 && cpu_is_zen5()) {
        ahead.near = AHEAD_ZEN5;
        ahead.far = 2 * AHEAD_ZEN5;
    } else if (cpu_is_zen4()) {
        ahead.near = AHEAD_ZEN4;
        ahead.second_level = true;
    }
    ahead.near = whole_rows(ahead.near, row_bytes);
    ahead.far = whole_rows(ahead.far, row_bytes);
    return ahead;
}

/* For reading entries up to `end` in order: no queries yet. */
static void begin_range(struct entries *e, const struct kv_view *kv, int end) {
    e->ready = NULL;
    e->d = kv->d;
    e->scattered = false;
    for (int i = 0; i < ATTEND_BLOCK; i++) e->list[i] = i;
    size_t k_bytes = kv->k_row_bytes, v_bytes = kv->v_row_bytes;
    e->ahead_k = rows_ahead(kv->type_k, kv->k + (size_t)end * k_bytes, k_bytes, kv->next_k);
    e->ahead_v = rows_ahead(kv->type_v, kv->v + (size_t)end * v_bytes, v_bytes, kv->next_v);
}

/* The list holds e->n numbers. */
static void repeat_last(struct entries *e) {
    e->scattered = true;
    e->with_keys = e->with_values = NULL;
    for (int i = e->n; i < padded(e->n); i++) e->list[i] = e->list[e->n - 1];
}

/* Entry `first` and what follows, but not `end`: a block, as many times 16 as there are, or the last ones. */
static void take_range(struct entries *e, const struct kv_view *kv, int first, int end) {
    const int left = end - first;
    e->n = left >= ATTEND_BLOCK ? ATTEND_BLOCK : left >= 16 ? left / 16 * 16 : left;
    e->k = e->ahead_k.from = kv->k + (size_t)first * kv->k_row_bytes;
    e->v = e->ahead_v.from = kv->v + (size_t)first * kv->v_row_bytes;
    if (e->n < 16) repeat_last(e);
}

/* The keys that are read after the block; itself if there are none. */
static const uint8_t *next_keys(const struct entries *e, const struct kv_view *kv, int first, int end) {
    if (first + e->n < end) return e->k + (size_t)e->n * kv->k_row_bytes;
    return kv->next_k ? kv->next_k : e->k;
}

/* What was left to ask for with a block's weights: see soon_with_keys(). */
struct rest {
    const uint8_t *at; /* NULL: nothing */
    size_t bytes;      /* with each row's weights */
};

/* Of as many rows of row_bytes as there are keys, for the weights of R rows. */
static struct rest rest_of(const struct entries *e, size_t k_row_bytes, size_t row_bytes, int R) {
    const size_t asked = (size_t)e->n * k_row_bytes * WITH_KEYS_QUARTERS / 4, all = (size_t)e->n * row_bytes;
    if (ASKS_AHEAD || !e->with_keys || asked >= all) return (struct rest){0};
    return (struct rest){e->with_keys + asked, ((unsigned)(all - asked) / 64 / (unsigned)R + 1) * 64};
}

static void prefetch_rest(struct rest *rest) {
    if (!rest->at) return;
    prefetch_lines(rest->at, 0, rest->bytes, false);
    rest->at += rest->bytes;
}

/* For reading entries here and there. */
static void begin_list(struct entries *e, const struct kv_view *kv) {
    e->ready = NULL;
    e->d = kv->d;
    e->k = kv->k;
    e->v = kv->v;
    e->ahead_k = e->ahead_v = (struct rows_ahead){0};
}

/* The first of n listed entries. */
static void take_list(struct entries *e, const int *index, int n) {
    e->n = n < ATTEND_BLOCK ? n : ATTEND_BLOCK;
    memcpy(e->list, index, (size_t)e->n * sizeof *index);
    repeat_last(e);
}

/* Up to FEW rows attend to the entries; `first` is the index of the first. */
static void attend_entries(const struct kv_view *kv, struct entries *e, const struct attend_row *rows, int R,
                           int first) {
    for (int r = 0; r < R; r++) {
        e->q[r] = rows[r].q;
        e->acc[r] = rows[r].state + ATTEND_ACC;
    }
    QK(kv->type_k, R, e);
    struct rest rest = rest_of(e, kv->k_row_bytes, kv->v_row_bytes, R);
    for (int r = 0; r < R; r++) {
        int seen = rows[r].limit - first < e->n ? rows[r].limit - first : e->n;
        softmax_entries(e, r, seen, rows[r].state);
        prefetch_rest(&rest);
    }
    PV(kv->type_v, R, e);
}

/* Asks for what a range begins with and nothing before it has asked for: the first keys or, with AVX-512, the values
 * that are read after them. */
static void prefetch_first(const struct kv_view *kv, int begin, int end) {
    const uint8_t *rows = ASKS_AHEAD ? kv->v : kv->k;
    const size_t row_bytes = ASKS_AHEAD ? kv->v_row_bytes : kv->k_row_bytes;
    const size_t most = ASKS_AHEAD ? AHEAD : ATTEND_BLOCK * row_bytes;
    const size_t bytes = end > begin ? (size_t)(end - begin) * row_bytes : 0;
    prefetch_lines(rows + (size_t)begin * row_bytes, 0, bytes < most ? bytes : most, false);
}

static void simd_range(const struct kv_view *kv, int begin, int end, const struct attend_row *rows, int m) {
    if (kv->d % LANES) {
        attend_c.range(kv, begin, end, rows, m);
        return;
    }
    struct entries e;
    begin_range(&e, kv, end);
    prefetch_first(kv, begin, end);
    for (int i = begin; i < end; i += e.n) {
        take_range(&e, kv, i, end);
        if (!e.scattered) {
            e.with_keys = e.v;
            e.with_values = next_keys(&e, kv, i, end);
        }
        for (int r = 0; r < m; r += FEW) attend_entries(kv, &e, rows + r, m - r < FEW ? m - r : FEW, i);
    }
}

/* Asks for the rows of up to ATTEND_BLOCK listed entries, which may lie anywhere in memory. */
static void prefetch_list(const uint8_t *rows, size_t row_bytes, const int *index, int n) {
    if (n > ATTEND_BLOCK) n = ATTEND_BLOCK;
    for (int i = 0; i < n; i++)
        for (size_t line = 0; line < row_bytes; line += 64)
            __builtin_prefetch(rows + (size_t)index[i] * row_bytes + line);
}

static void simd_list(const struct kv_view *kv, const int *index, const float *scores, int n, float *state) {
    if (kv->d % LANES) {
        attend_c.list(kv, index, scores, n, state);
        return;
    }
    struct entries e;
    e.acc[0] = state + ATTEND_ACC;
    begin_list(&e, kv);
    prefetch_list(kv->v, kv->v_row_bytes, index, n);
    for (int i = 0; i < n; i += ATTEND_BLOCK) {
        prefetch_list(kv->v, kv->v_row_bytes, index + i + ATTEND_BLOCK, n - i - ATTEND_BLOCK);
        take_list(&e, index + i, n - i);
        memcpy(e.p[0], scores + i, (size_t)e.n * sizeof *scores);
        softmax_entries(&e, 0, e.n, state);
        PV(kv->type_v, 1, &e);
    }
}

/* Scores of m rows against the entries. */
static void score_entries(const struct kv_view *kv, struct entries *e, const float *q, size_t q_stride, int m,
                          float *scores, size_t stride) {
    for (int r = 0; r < m; r += FEW) {
        int R = m - r < FEW ? m - r : FEW;
        for (int j = 0; j < R; j++) e->q[j] = q + (size_t)(r + j) * q_stride;
        QK(kv->type_k, R, e);
        for (int j = 0; j < R; j++)
            memcpy(scores + (size_t)(r + j) * stride, e->p[j], (size_t)e->n * sizeof(float));
    }
}

static void simd_scores(const struct kv_view *kv, int begin, int end, const float *q, size_t q_stride, int m,
                        float *scores, size_t stride) {
    if (kv->d % LANES) {
        attend_c.scores(kv, begin, end, q, q_stride, m, scores, stride);
        return;
    }
    struct entries e;
    begin_range(&e, kv, end);
    for (int i = begin; i < end; i += e.n) {
        take_range(&e, kv, i, end);
        if (!e.scattered) e.with_keys = next_keys(&e, kv, i, end);
        score_entries(kv, &e, q, q_stride, m, scores + (i - begin), stride);
        struct rest rest = rest_of(&e, kv->k_row_bytes, kv->k_row_bytes, 1);
        prefetch_rest(&rest);
    }
}

static void simd_score_list(const struct kv_view *kv, const int *index, int n, const float *q, size_t q_stride,
                            int m, float *scores, size_t stride) {
    if (kv->d % LANES) {
        attend_c.score_list(kv, index, n, q, q_stride, m, scores, stride);
        return;
    }
    struct entries e;
    begin_list(&e, kv);
    prefetch_list(kv->k, kv->k_row_bytes, index, n);
    for (int i = 0; i < n; i += ATTEND_BLOCK) {
        prefetch_list(kv->k, kv->k_row_bytes, index + i + ATTEND_BLOCK, n - i - ATTEND_BLOCK);
        take_list(&e, index + i, n - i);
        score_entries(kv, &e, q, q_stride, m, scores + i, stride);
    }
}

static void simd_add_softmax(float *scores, int n, float scale, float *sums) {
    float tail[LANES], tail_sums[LANES];
    int full = n / LANES * LANES;
    for (int j = 0; j < LANES; j++) tail[j] = full + j < n ? scores[full + j] : NEVER;
    vec top = v_load(tail), total = v_zero();
    for (int i = 0; i < full; i += LANES) top = v_max(top, v_load(scores + i));
    vec shift = v_set(v_max_lane(top)), last = v_exp(v_sub(v_load(tail), shift));
    for (int i = 0; i < full; i += LANES) {
        vec w = v_exp(v_sub(v_load(scores + i), shift));
        total = v_add(total, w);
        v_store(scores + i, w);
    }
    vec share = v_set(scale / v_sum(v_add(total, last)));
    for (int i = 0; i < full; i += LANES) v_store(sums + i, v_fma(v_load(scores + i), share, v_load(sums + i)));
    v_store(tail_sums, v_mul(last, share));
    for (int i = full; i < n; i++) sums[i] += tail_sums[i - full];
}

/* The table's entries that are here, and those of attend_simd.h. */
#define FEW_KERNELS                                                                                        \
    .load = simd_load, .range = simd_range, .list = simd_list, .scores = simd_scores,                      \
    .score_list = simd_score_list, .add_softmax = simd_add_softmax
