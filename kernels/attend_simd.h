/* attend_simd.h - attend.h in float32 for any vector width, as static functions.
 *
 * The file that includes it defines the vectors:
 *
 *     LANES, vec                      8 or 16 floats (4 on NEON)
 *     v_zero v_set v_load v_store v_add v_sub v_mul v_max
 *     v_fma(a, b, c)                  a * b + c
 *     v_exp(x)                        for x <= 0, 0 where x is below -1e29
 *     v_below(x, index, limit)        x where index < limit, else NEVER
 *     v_sum, v_max_lane               over the lanes
 *     v_sum4(a, b, c, d, out)         four sums to out[4]
 *     v_load_f16 v_set_f16 v_load_i8 v_load_low4 v_load_high4   stored values as floats
 *     v_store_f16
 *     v_transpose(vec x[LANES])       rows for columns
 *     KEYS, CHANNELS                  register tile sizes (see qk_tile(), pv_entries())
 *
 * The plain C twin of everything here is attend.c. */
#pragma once

#include <math.h>
#include <string.h>

#include "attend_internal.h"

/* Without it gcc unrolls too late to keep arrays of vectors in registers. */
#define UNROLL _Pragma("GCC unroll 8")
#define INLINE static inline __attribute__((always_inline))
#define NEVER (-1e30f) /* score of an entry that a row may not see: finite, so that differences are, too */

/* ---- stored rows ---------------------------------------------------------------- */

/* LANES values of a stored row, from channel c on. */
INLINE vec load_at(enum kv_type type, const uint8_t *row, int c) {
    if (type == KV_F32) return v_load((const float *)row + c);
    if (type == KV_F16) return v_load_f16(row + 2 * c);
    if (type == KV_Q8_0) {
        const uint8_t *block = row + c / KV_BLOCK * KV_Q8_0_BYTES;
        return v_mul(v_set_f16(block), v_load_i8(block + 2 + c % KV_BLOCK));
    }
    const uint8_t *block = row + c / KV_BLOCK * KV_Q4_0_BYTES, *codes = block + 2 + c % (KV_BLOCK / 2);
    vec code = c % KV_BLOCK < KV_BLOCK / 2 ? v_load_low4(codes) : v_load_high4(codes);
    return v_mul(v_set_f16(block), v_sub(code, v_set(8)));
}

static void simd_load(enum kv_type type, int d, const uint8_t *row, float *out) {
    if (d % LANES) {
        kv_row_load(type, d, row, out);
        return;
    }
    switch (type) {
    case KV_F32: memcpy(out, row, (size_t)d * sizeof *out); break;
    case KV_F16: for (int c = 0; c < d; c += LANES) v_store(out + c, load_at(KV_F16, row, c)); break;
    case KV_Q8_0: for (int c = 0; c < d; c += LANES) v_store(out + c, load_at(KV_Q8_0, row, c)); break;
    case KV_Q4_0: for (int c = 0; c < d; c += LANES) v_store(out + c, load_at(KV_Q4_0, row, c)); break;
    }
}

static void simd_store(enum kv_type type, int d, const float *x, uint8_t *row) {
    if (type == KV_F16 && d % LANES == 0) {
        for (int c = 0; c < d; c += LANES) v_store_f16(row + 2 * c, v_load(x + c));
        return;
    }
    kv_row_store(type, d, x, row);
}

/* ---- few rows: lanes are channels ----------------------------------------------- */

#define FEW 4 /* rows that share one reading of the entries */

/* What one pass over up to ATTEND_BLOCK entries works on. */
struct entries {
    int n, d;
    size_t ahead_k, ahead_v;             /* bytes from an entry to the one to prefetch; 0: none */
    const uint8_t *k[ATTEND_BLOCK], *v[ATTEND_BLOCK]; /* stored rows; the last is repeated up to a multiple of 4 */
    _Alignas(64) float p[FEW][ATTEND_BLOCK]; /* scores, then weights */
};

INLINE void prefetch_row(const uint8_t *row, size_t ahead, size_t bytes) {
    if (!ahead) return;
    for (size_t line = 0; line < bytes; line += 64) __builtin_prefetch(row + ahead + line);
}

/* Scores of R rows against all entries. */
INLINE void qk_entries(enum kv_type type, int R, struct entries *e, const float *const *q) {
    size_t bytes = kv_row_bytes(type, e->d);
    for (int i = 0; i < e->n; i += 4) {
        vec sum[FEW][4];
        UNROLL for (int r = 0; r < R; r++)
            UNROLL for (int j = 0; j < 4; j++) sum[r][j] = v_zero();
        UNROLL for (int j = 0; j < 4; j++) prefetch_row(e->k[i + j], e->ahead_k, bytes);
        for (int c = 0; c < e->d; c += LANES) {
            vec k[4];
            UNROLL for (int j = 0; j < 4; j++) k[j] = load_at(type, e->k[i + j], c);
            UNROLL for (int r = 0; r < R; r++) {
                vec x = v_load(q[r] + c);
                UNROLL for (int j = 0; j < 4; j++) sum[r][j] = v_fma(x, k[j], sum[r][j]);
            }
        }
        UNROLL for (int r = 0; r < R; r++) v_sum4(sum[r][0], sum[r][1], sum[r][2], sum[r][3], &e->p[r][i]);
    }
}

/* acc[r] = acc[r] * shrink[r] + sum of p[r][i] v_i, for C vectors of channels from c on. */
INLINE void pv_channels(enum kv_type type, int R, int C, const struct entries *e, const float *shrink,
                        float *const *acc, int c) {
    vec sum[FEW][CHANNELS];
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int j = 0; j < C; j++) sum[r][j] = v_mul(v_set(shrink[r]), v_load(acc[r] + c + j * LANES));
    for (int i = 0; i < e->n; i++) {
        vec v[CHANNELS];
        UNROLL for (int j = 0; j < C; j++) v[j] = load_at(type, e->v[i], c + j * LANES);
        UNROLL for (int r = 0; r < R; r++) {
            vec p = v_set(e->p[r][i]);
            UNROLL for (int j = 0; j < C; j++) sum[r][j] = v_fma(p, v[j], sum[r][j]);
        }
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int j = 0; j < C; j++) v_store(acc[r] + c + j * LANES, sum[r][j]);
}

INLINE void pv_entries(enum kv_type type, int R, const struct entries *e, const float *shrink,
                       float *const *acc) {
    int c = 0;
    for (; c + CHANNELS * LANES <= e->d; c += CHANNELS * LANES)
        pv_channels(type, R, CHANNELS, e, shrink, acc, c);
    for (; c < e->d; c += LANES) pv_channels(type, R, 1, e, shrink, acc, c);
}

/* Calls f with the row count and the type as constants, so that the compiler makes one copy for each. */
#define BY_ROWS(f, type, R, ...)                    \
    switch (R) {                                    \
    case 1: f(type, 1, __VA_ARGS__); break;         \
    case 2: f(type, 2, __VA_ARGS__); break;         \
    case 3: f(type, 3, __VA_ARGS__); break;         \
    default: f(type, 4, __VA_ARGS__); break;        \
    }
#define BY_TYPE(f, type, R, ...)                            \
    switch (type) {                                         \
    case KV_F32: BY_ROWS(f, KV_F32, R, __VA_ARGS__); break;  \
    case KV_F16: BY_ROWS(f, KV_F16, R, __VA_ARGS__); break;  \
    case KV_Q8_0: BY_ROWS(f, KV_Q8_0, R, __VA_ARGS__); break; \
    case KV_Q4_0: BY_ROWS(f, KV_Q4_0, R, __VA_ARGS__); break; \
    }

static void qk_any(enum kv_type type, int R, struct entries *e, const float *const *q) {
    BY_TYPE(qk_entries, type, R, e, q)
}

static void pv_any(enum kv_type type, int R, const struct entries *e, const float *shrink, float *const *acc) {
    BY_TYPE(pv_entries, type, R, e, shrink, acc)
}

/* Scores of a row's first `seen` entries become weights; the others get none.
 * Brings max and sum of the state up to date; returns what shrinks its sums. */
static float softmax_entries(float *p, int n, int seen, float *state) {
    if (seen <= 0) {
        memset(p, 0, sizeof *p * ATTEND_BLOCK);
        return 1;
    }
    int padded = (n + LANES - 1) / LANES * LANES;
    for (int i = seen; i < padded; i++) p[i] = NEVER;
    vec top = v_load(p);
    for (int i = LANES; i < padded; i += LANES) top = v_max(top, v_load(p + i));
    float old = state[ATTEND_MAX], max = v_max_lane(top);
    if (max < old) max = old;
    vec shift = v_set(max), sum = v_zero();
    for (int i = 0; i < padded; i += LANES) {
        vec w = v_exp(v_sub(v_load(p + i), shift));
        sum = v_add(sum, w);
        v_store(p + i, w);
    }
    float shrink = max > old ? expf(old - max) : 1;
    state[ATTEND_MAX] = max;
    state[ATTEND_SUM] = state[ATTEND_SUM] * shrink + v_sum(sum);
    return shrink;
}

/* Entries begin .. begin + n - 1, or those that index lists. */
static void point_at(struct entries *e, const struct kv_view *kv, const int *index, int begin, int n) {
    e->n = n;
    e->d = kv->d;
    for (int i = 0; i < (n + 3) / 4 * 4; i++) {
        size_t entry = (size_t)(index ? index[i < n ? i : n - 1] : begin + (i < n ? i : n - 1));
        e->k[i] = kv->k + entry * kv->k_row_bytes;
        e->v[i] = kv->v + entry * kv->v_row_bytes;
    }
    e->ahead_k = index ? 0 : ATTEND_BLOCK * kv->k_row_bytes;
    e->ahead_v = index ? 0 : ATTEND_BLOCK * kv->v_row_bytes;
}

/* Up to FEW rows attend to the entries; `first` is the index of the first, or
 * -1 where all rows see all of them. */
static void attend_entries(const struct kv_view *kv, struct entries *e, const struct attend_row *rows, int R,
                           int first) {
    const float *q[FEW];
    float *acc[FEW], shrink[FEW];
    UNROLL for (int r = 0; r < R; r++) {
        q[r] = rows[r].q;
        acc[r] = rows[r].state + ATTEND_ACC;
    }
    qk_any(kv->type_k, R, e, q);
    UNROLL for (int r = 0; r < R; r++) {
        int seen = first < 0 || rows[r].limit - first > e->n ? e->n : rows[r].limit - first;
        shrink[r] = softmax_entries(e->p[r], e->n, seen, rows[r].state);
    }
    pv_any(kv->type_v, R, e, shrink, acc);
}

static void simd_range(const struct kv_view *kv, int begin, int end, const struct attend_row *rows, int m) {
    if (kv->d % LANES) {
        attend_c.range(kv, begin, end, rows, m);
        return;
    }
    struct entries e;
    for (int i = begin; i < end; i += ATTEND_BLOCK) {
        point_at(&e, kv, NULL, i, end - i < ATTEND_BLOCK ? end - i : ATTEND_BLOCK);
        for (int r = 0; r < m; r += FEW) attend_entries(kv, &e, rows + r, m - r < FEW ? m - r : FEW, i);
    }
}

static void simd_list(const struct kv_view *kv, const int *index, int n, const float *q, float *state) {
    if (kv->d % LANES) {
        attend_c.list(kv, index, n, q, state);
        return;
    }
    struct entries e;
    struct attend_row row = {.q = q, .state = state};
    for (int i = 0; i < n; i += ATTEND_BLOCK) {
        point_at(&e, kv, index + i, 0, n - i < ATTEND_BLOCK ? n - i : ATTEND_BLOCK);
        attend_entries(kv, &e, &row, 1, -1);
    }
}

static void simd_scores(const struct kv_view *kv, int begin, int end, const float *q, size_t q_stride, int m,
                        float *scores, size_t stride) {
    if (kv->d % LANES) {
        attend_c.scores(kv, begin, end, q, q_stride, m, scores, stride);
        return;
    }
    struct entries e;
    for (int i = begin; i < end; i += ATTEND_BLOCK) {
        point_at(&e, kv, NULL, i, end - i < ATTEND_BLOCK ? end - i : ATTEND_BLOCK);
        for (int r = 0; r < m; r += FEW) {
            int R = m - r < FEW ? m - r : FEW;
            const float *rows[FEW];
            UNROLL for (int j = 0; j < R; j++) rows[j] = q + (size_t)(r + j) * q_stride;
            qk_any(kv->type_k, R, &e, rows);
            UNROLL for (int j = 0; j < R; j++)
                memcpy(scores + (size_t)(r + j) * stride + (i - begin), e.p[j], (size_t)e.n * sizeof(float));
        }
    }
}

/* ---- many rows: lanes are rows ---------------------------------------------------- */

#define VECS 3                 /* vectors of rows in a register tile */
#define TILE_ROWS (VECS * LANES)

/* How many of a block's n entries, the first of which has index `first`, each row sees; the range of that. */
static void tile_limits(float *limit, const struct attend_row *rows, int m, int first, int n, int *least,
                        int *most) {
    *least = n;
    *most = 0;
    for (int r = 0; r < TILE_ROWS; r++) {
        int seen = rows[r < m ? r : 0].limit - first;
        seen = seen < 0 ? 0 : seen < n ? seen : n;
        limit[r] = (float)seen;
        if (seen < *least) *least = seen;
        if (seen > *most) *most = seen;
    }
}

/* to[c][r] = channel c of row r, of its query or of the weighted sums of its state. */
static void load_transposed(float (*to)[TILE_ROWS], int d, const struct attend_row *rows, int m, bool sums) {
    for (int first = 0; first < TILE_ROWS; first += LANES) {
        const float *from[LANES];
        for (int r = 0; r < LANES; r++) {
            const struct attend_row *row = &rows[first + r < m ? first + r : 0]; /* lanes without a row repeat the first */
            from[r] = sums ? row->state + ATTEND_ACC : row->q;
        }
        int c = 0;
        for (; c + LANES <= d; c += LANES) {
            vec x[LANES];
            for (int r = 0; r < LANES; r++) x[r] = v_load(from[r] + c);
            v_transpose(x);
            for (int j = 0; j < LANES; j++) v_store(to[c + j] + first, x[j]);
        }
        for (; c < d; c++)
            for (int r = 0; r < LANES; r++) to[c][first + r] = from[r][c];
    }
}

/* The weighted sums back to the states. */
static void store_transposed(float (*from)[TILE_ROWS], int d, const struct attend_row *rows, int m) {
    for (int first = 0; first < m; first += LANES) {
        int count = m - first < LANES ? m - first : LANES, c = 0;
        for (; c + LANES <= d; c += LANES) {
            vec x[LANES];
            for (int j = 0; j < LANES; j++) x[j] = v_load(from[c + j] + first);
            v_transpose(x);
            for (int r = 0; r < count; r++) v_store(rows[first + r].state + ATTEND_ACC + c, x[r]);
        }
        for (; c < d; c++)
            for (int r = 0; r < count; r++) rows[first + r].state[ATTEND_ACC + c] = from[c][first + r];
    }
}
