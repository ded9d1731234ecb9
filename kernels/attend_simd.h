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
 *     KEYS                            register tile size (see qk_tile())
 *     CHANNELS_OF(R)                  the same for R rows: 2 or 4 vectors (see pv_entries())
 *
 * The plain C twin of everything here is attend.c. */
#pragma once

#include <math.h>
#include <string.h>

#include "attend_internal.h"
#include "inline.h"
#include "prefetch.h"

#define NEVER (-1e30f) /* score of an entry that a row may not see: finite, so that differences are, too */

/* ---- stored rows ---------------------------------------------------------------- */

INLINE bool quantized(enum kv_type type) { return type == KV_Q8_0 || type == KV_Q4_0; }

/* LANES values of a stored row from channel c on; without the scale of their
 * block where the type is quantised. */
INLINE vec load_codes(enum kv_type type, const uint8_t *row, int c) {
    if (type == KV_F32) return v_load((const float *)row + c);
    if (type == KV_F16) return v_load_f16(row + 2 * c);
    if (type == KV_Q8_0) return v_load_i8(row + c);
    const uint8_t *codes = row + c / KV_BLOCK * (KV_BLOCK / 2) + c % (KV_BLOCK / 2);
    return v_sub(c % KV_BLOCK < KV_BLOCK / 2 ? v_load_low4(codes) : v_load_high4(codes), v_set(8));
}

INLINE vec load_at(enum kv_type type, int d, const uint8_t *row, int c) {
    vec x = load_codes(type, row, c);
    return quantized(type) ? v_mul(v_set_f16(row + kv_scale_at(type, d, c / KV_BLOCK)), x) : x;
}

static void simd_load(enum kv_type type, int d, const uint8_t *row, float *out) {
    if (d % LANES) {
        kv_row_load(type, d, row, out);
        return;
    }
    switch (type) {
    case KV_F32: memcpy(out, row, (size_t)d * sizeof *out); break;
    case KV_F16: for (int c = 0; c < d; c += LANES) v_store(out + c, load_at(KV_F16, d, row, c)); break;
    case KV_Q8_0: for (int c = 0; c < d; c += LANES) v_store(out + c, load_at(KV_Q8_0, d, row, c)); break;
    case KV_Q4_0: for (int c = 0; c < d; c += LANES) v_store(out + c, load_at(KV_Q4_0, d, row, c)); break;
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

#define FEW 4              /* rows that share one reading of the entries */
#define QUERIES_BYTES 6144 /* of that many rows in any form */

/* What to prefetch: the rows so many bytes on, 0 for none; from `end` on it is `next`, or NULL. Twice, as in
 * prefetch.h, or `far` is 0. */
struct rows_ahead {
    size_t near, far;
    bool second_level; /* not to the first-level cache */
    const uint8_t *end, *next;
};

/* What one pass over up to ATTEND_BLOCK entries works on. */
struct entries {
    int n, d;
    struct rows_ahead ahead_k, ahead_v;
    /* Stored rows, the last repeated up to a multiple of 16. */
    const uint8_t *k[ATTEND_BLOCK], *v[ATTEND_BLOCK];
    _Alignas(64) float p[FEW][ATTEND_BLOCK]; /* scores, then weights */
    float largest[FEW];                      /* weight of a row */
    /* Queries as QK wants them, and the first of those: they stay the same from block to block. */
    const float *ready;
    _Alignas(64) uint8_t queries[QUERIES_BYTES];
};

/* Entries are gone through up to a whole vector's. */
INLINE int whole_vectors(int n) { return (n + LANES - 1) / LANES * LANES; }

/* Where what is read some time after a row lies, or NULL. */
struct soon {
    const uint8_t *near, *far;
    bool second_level;
};

INLINE const uint8_t *row_ahead(const uint8_t *row, size_t bytes, struct rows_ahead ahead) {
    if (!bytes || (!ahead.next && row + bytes >= ahead.end)) return NULL;
    return read_after(row, bytes, ahead.end, ahead.next);
}

INLINE struct soon soon_after(const uint8_t *row, struct rows_ahead ahead) {
    return (struct soon){row_ahead(row, ahead.near, ahead), row_ahead(row, ahead.far, ahead),
                         ahead.second_level};
}

/* The lines that begin in bytes [begin, end). */
INLINE void prefetch_lines(const uint8_t *p, size_t begin, size_t end, bool second_level) {
    if (!p) return;
    size_t first = (begin + 63) / 64 * 64;
    if (second_level) for (size_t line = first; line < end; line += 64) __builtin_prefetch(p + line, 0, 2);
    else for (size_t line = first; line < end; line += 64) __builtin_prefetch(p + line);
}

/* A few lines at a time: where many are asked for at once, the reads behind them wait. */
INLINE void prefetch_part(struct soon soon, size_t begin, size_t end) {
    prefetch_lines(soon.near, begin, end, soon.second_level);
    prefetch_lines(soon.far, begin, end, soon.second_level);
}

/* LANES channels of the products of R rows and four keys. With up to three rows these and the sums fit 16 registers;
 * with four the keys stay there. */
INLINE void add_products(enum kv_type type, int R, int d, const uint8_t *const *keys, const float *const *q, int c,
                         vec sum[FEW][4]) {
    vec x[4];
    if (R < 4) {
        UNROLL for (int r = 0; r < R; r++) x[r] = v_load(q[r] + c);
        UNROLL for (int j = 0; j < 4; j++) {
            vec k = load_at(type, d, keys[j], c);
            UNROLL for (int r = 0; r < R; r++) sum[r][j] = v_fma(x[r], k, sum[r][j]);
        }
        return;
    }
    UNROLL for (int j = 0; j < 4; j++) x[j] = load_at(type, d, keys[j], c);
    UNROLL for (int r = 0; r < R; r++) {
        vec row = v_load(q[r] + c);
        UNROLL for (int j = 0; j < 4; j++) sum[r][j] = v_fma(row, x[j], sum[r][j]);
    }
}

/* Scores of R rows against all entries. */
INLINE void qk_entries(enum kv_type type, int R, int d, struct entries *e, const float *const *q) {
    const size_t four_rows = 4 * kv_row_bytes(type, d);
    for (int i = 0; i < e->n; i += 4) {
        vec sum[FEW][4];
        UNROLL for (int r = 0; r < R; r++)
            UNROLL for (int j = 0; j < 4; j++) sum[r][j] = v_zero();
        const struct soon soon = soon_after(e->k[i], e->ahead_k);
        for (int c = 0; c < d; c += LANES) {
            prefetch_part(soon, (size_t)c * four_rows / (size_t)d, (size_t)(c + LANES) * four_rows / (size_t)d);
            add_products(type, R, d, &e->k[i], q, c, sum);
        }
        UNROLL for (int r = 0; r < R; r++) v_sum4(sum[r][0], sum[r][1], sum[r][2], sum[r][3], &e->p[r][i]);
    }
}

/* acc[r] = acc[r] * shrink[r] + sum of p[r][i] v_i, for C vectors of channels from c on. The first
 * channels' turn prefetches later entries: one by one, so that memory is never without work. */
INLINE void pv_channels(enum kv_type type, int R, int C, int d, const struct entries *e,
                        float (*p)[ATTEND_BLOCK], const float *shrink, float *const *acc, int c) {
    vec sum[FEW][4];
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int j = 0; j < C; j++)
            sum[r][j] = v_mul(v_set(shrink[r]), v_load(acc[r] + c + j * LANES));
    for (int i = 0; i < e->n; i++) {
        vec w[FEW];
        if (c == 0) prefetch_part(soon_after(e->v[i], e->ahead_v), 0, kv_row_bytes(type, d));
        UNROLL for (int r = 0; r < R; r++) w[r] = v_set(p[r][i]);
        UNROLL for (int j = 0; j < C; j++) {
            vec v = load_codes(type, e->v[i], c + j * LANES);
            UNROLL for (int r = 0; r < R; r++) sum[r][j] = v_fma(w[r], v, sum[r][j]);
        }
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int j = 0; j < C; j++) v_store(acc[r] + c + j * LANES, sum[r][j]);
}

/* scaled[r][i] = p[r][i] * the scale of block c / KV_BLOCK of value i. */
INLINE void scale_weights(enum kv_type type, int R, const struct entries *e, int c,
                          float (*scaled)[ATTEND_BLOCK]) {
    _Alignas(64) uint16_t scales[ATTEND_BLOCK];
    int padded = whole_vectors(e->n);
    for (int i = 0; i < e->n; i++) memcpy(&scales[i], e->v[i] + kv_scale_at(type, e->d, c / KV_BLOCK), 2);
    for (int i = e->n; i < padded; i++) scales[i] = 0;
    for (int i = 0; i < padded; i += LANES) {
        vec scale = v_load_f16((const uint8_t *)(scales + i));
        UNROLL for (int r = 0; r < R; r++) v_store(scaled[r] + i, v_mul(scale, v_load(e->p[r] + i)));
    }
}

INLINE void pv_entries(enum kv_type type, int R, int d, struct entries *e, const float *shrink,
                       float *const *acc) {
    _Alignas(64) float scaled[FEW][ATTEND_BLOCK];
    const int in_block = quantized(type) ? KV_BLOCK / LANES : 4;
    const int C = CHANNELS_OF(R) < in_block ? CHANNELS_OF(R) : in_block;
    float (*p)[ATTEND_BLOCK] = quantized(type) ? scaled : e->p;
    int c = 0;
    for (; c + C * LANES <= d; c += C * LANES) {
        if (quantized(type) && c % KV_BLOCK == 0) scale_weights(type, R, e, c, scaled);
        pv_channels(type, R, C, d, e, p, shrink, acc, c);
    }
    for (; c < d; c += LANES) {
        if (quantized(type) && c % KV_BLOCK == 0) scale_weights(type, R, e, c, scaled);
        pv_channels(type, R, 1, d, e, p, shrink, acc, c);
    }
}

/* Calls f with the type, the row count and the usual head sizes as constants, so that the compiler makes one
 * copy for each. */
#define BY_SIZE(f, type, R, d, ...)                    \
    if ((d) == 64) f(type, R, 64, __VA_ARGS__);        \
    else if ((d) == 128) f(type, R, 128, __VA_ARGS__); \
    else f(type, R, d, __VA_ARGS__)
#define BY_ROWS(f, type, R, d, ...)                      \
    switch (R) {                                         \
    case 1: BY_SIZE(f, type, 1, d, __VA_ARGS__); break;  \
    case 2: BY_SIZE(f, type, 2, d, __VA_ARGS__); break;  \
    case 3: BY_SIZE(f, type, 3, d, __VA_ARGS__); break;  \
    default: BY_SIZE(f, type, 4, d, __VA_ARGS__); break; \
    }
#define BY_TYPE(f, type, R, d, ...)                              \
    switch (type) {                                              \
    case KV_F32: BY_ROWS(f, KV_F32, R, d, __VA_ARGS__); break;   \
    case KV_F16: BY_ROWS(f, KV_F16, R, d, __VA_ARGS__); break;   \
    case KV_Q8_0: BY_ROWS(f, KV_Q8_0, R, d, __VA_ARGS__); break; \
    case KV_Q4_0: BY_ROWS(f, KV_Q4_0, R, d, __VA_ARGS__); break; \
    }

static void qk_any(enum kv_type type, int R, struct entries *e, const float *const *q) {
    BY_TYPE(qk_entries, type, R, e->d, e, q)
}

static void pv_any(enum kv_type type, int R, struct entries *e, const float *shrink, float *const *acc) {
    BY_TYPE(pv_entries, type, R, e->d, e, shrink, acc)
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
            /* Lanes without a row repeat the first. */
            const struct attend_row *row = &rows[first + r < m ? first + r : 0];
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
