/* attend_simd.h - what attend.h's functions have in common, for any vector width.
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
 *     OF_ISA(name)                    name of a function that exists for each instruction set
 *
 * attend_float.h, attend_few.h and attend_tile.h have the functions; their plain C twin is attend.c. */
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
#define QUERIES_BYTES 10240 /* of that many rows in any form */

/* What CPUs with AVX-512 prefetch as the rows of a block are read, which lie at `from`: what lies so many bytes on;
 * from `end` on that is at `next`, if there is any. Twice, as in prefetch.h, or `far` is 0. */
struct rows_ahead {
    const uint8_t *from, *end, *next;
    size_t near, far;
    bool second_level; /* not to the first-level cache */
};

/* What a product is compiled for; in the copy for any head size, d, n and row_bytes are variables. */
struct pass {
    enum kv_type type;
    int R, d, n;      /* rows; head size; entries, a multiple of 16 */
    size_t row_bytes; /* of keys or values */
    bool listed;      /* entries may be scattered */
};

/* What one pass of up to FEW rows over up to ATTEND_BLOCK entries works on. */
struct entries {
    const float *q[FEW]; /* queries */
    float *acc[FEW];     /* weighted sums */
    float shrink[FEW];   /* what those are multiplied by, as the largest score has changed */
    int n, d;
    const uint8_t *k, *v;   /* stored rows */
    int list[ATTEND_BLOCK]; /* which of them: 0, 1 and so on or, if they are scattered, any; the last of these is
                             * repeated up to a multiple of 16 */
    bool scattered;
    struct rows_ahead ahead_k, ahead_v;
    const uint8_t *with_keys, *with_values; /* what is asked for while those are read, or NULL: see soon_with_keys() */
    _Alignas(64) float p[FEW][ATTEND_BLOCK]; /* scores, then weights */
    float largest[FEW];                      /* weight of a row */
    /* Queries as QK wants them, and the first of those: they stay the same from block to block. */
    const float *ready;
    _Alignas(64) uint8_t queries[QUERIES_BYTES];
};

/* Entries are gone through up to a multiple of 16, whole vectors of any width. */
INLINE int padded(int n) { return (n + 15) / 16 * 16; }

/* Row i + j of the block's keys or values, with a constant for j. */
INLINE const uint8_t *row_at(struct pass pass, const struct entries *e, const uint8_t *rows, int i, int j) {
    if (pass.listed) return rows + (size_t)e->list[i + j] * pass.row_bytes;
    return rows + (size_t)i * pass.row_bytes + (size_t)j * pass.row_bytes;
}

/* Where what is read some time later lies, or NULL; `stride` bytes of it are asked for with each row that is read. */
struct soon {
    const uint8_t *near, *far;
    size_t stride;
    bool second_level;
};

/* Where nothing is read after the range, this is the row itself, as that costs less than a branch. */
INLINE const uint8_t *row_ahead(const uint8_t *row, size_t bytes, struct rows_ahead ahead) {
    const uint8_t *p = row + bytes;
    return p < ahead.end ? p : ahead.next ? ahead.next + (p - ahead.end) : row;
}

/* What is read after row i of the block, as its first channels are. */
INLINE struct soon soon_after(struct pass pass, const struct rows_ahead *ahead, int c, int i) {
    struct soon soon = {.stride = pass.row_bytes};
    if (c > 0 || (pass.listed && !ahead->near)) return soon;
    const uint8_t *row = ahead->from + (size_t)i * pass.row_bytes;
    soon.near = row_ahead(row, ahead->near, *ahead);
    if (ahead->far) soon.far = row_ahead(row, ahead->far, *ahead);
    soon.second_level = ahead->second_level;
    return soon;
}

/* So many quarters of the block at `from`, as `width` channels of row i from c on are read. */
INLINE struct soon soon_meanwhile(struct pass pass, const uint8_t *from, size_t quarters, int c, int width, int i) {
    struct soon soon = {.stride = pass.row_bytes * quarters / 4 * (size_t)width / (size_t)pass.d};
    if (!pass.listed || from) soon.near = from + (size_t)(c / width * pass.n + i) * soon.stride;
    return soon;
}

/* Memory should have work all the time. CPUs with AVX-512 ask for keys while they read keys, and for values while they
 * read values, as tuned on each. The others ask for a block's values while they read its keys and find its weights,
 * and for the next keys while they read the values: 15% faster on Zen 3, where memory had been idle with the weights
 * and the values' later channels. */
#define WITH_KEYS_QUARTERS 3 /* of the values, the rest with the weights */

/* What to ask for as `width` channels of key i from c on are read. */
INLINE struct soon soon_with_keys(struct pass pass, const struct entries *e, int c, int width, int i) {
    return LANES == 16 ? soon_after(pass, &e->ahead_k, c, i)
                       : soon_meanwhile(pass, e->with_keys, WITH_KEYS_QUARTERS, c, width, i);
}

INLINE struct soon soon_with_values(struct pass pass, const struct entries *e, int c, int width, int i) {
    return LANES == 16 ? soon_after(pass, &e->ahead_v, c, i) : soon_meanwhile(pass, e->with_values, 4, c, width, i);
}

/* The lines that begin in bytes [begin, end). */
INLINE void prefetch_lines(const uint8_t *p, size_t begin, size_t end, bool second_level) {
    size_t first = (begin + 63) / 64 * 64;
    if (second_level) for (size_t line = first; line < end; line += 64) __builtin_prefetch(p + line, 0, 2);
    else for (size_t line = first; line < end; line += 64) __builtin_prefetch(p + line);
}

INLINE bool asks(struct pass pass, struct soon soon) { return (LANES < 16 && !pass.listed) || soon.near; }

/* Bytes [begin, end) there. A few lines at a time: where many are asked for at once, the reads behind them wait. */
INLINE void prefetch_part(struct pass pass, struct soon soon, size_t begin, size_t end) {
    if (!asks(pass, soon)) return;
    prefetch_lines(soon.near, begin, end, soon.second_level);
    if (LANES == 16 && soon.far) prefetch_lines(soon.far, begin, end, soon.second_level);
}

/* The next so many bytes. */
INLINE void prefetch_next(struct pass pass, struct soon *soon, size_t bytes) {
    prefetch_part(pass, *soon, 0, bytes);
    if (asks(pass, *soon)) soon->near += bytes;
    if (LANES == 16 && soon->far) soon->far += bytes;
}

/* Defines name(R, e): f(pass, e) with what `pass` has as constants, so that the compiler makes a copy of f for each. */
#define FOR_ROWS(name, f, type, listed, d, n)                                  \
    NOINLINE void name(int R, struct entries *e) {                             \
        const size_t row_bytes = kv_row_bytes(type, d);                        \
        switch (R) {                                                           \
        case 1: f((struct pass){type, 1, d, n, row_bytes, listed}, e); break;  \
        case 2: f((struct pass){type, 2, d, n, row_bytes, listed}, e); break;  \
        case 3: f((struct pass){type, 3, d, n, row_bytes, listed}, e); break;  \
        default: f((struct pass){type, 4, d, n, row_bytes, listed}, e); break; \
        }                                                                      \
    }

/* For any head size and scattered entries. */
#define FOR_ANY(name, f, type) FOR_ROWS(name, f, type, true, e->d, padded(e->n))

/* The same with copies for the usual head sizes, for blocks of which `usual` holds, of `count` entries. */
#define FOR_SIZES_IF(usual, name, f, type, count)             \
    FOR_ROWS(name##_64, f, type, false, 64, count)            \
    FOR_ROWS(name##_128, f, type, false, 128, count)          \
    FOR_ANY(name##_any, f, type)                              \
    static void name(int R, struct entries *e) {              \
        const int size = !e->scattered && (usual) ? e->d : 0; \
        if (size == 64) name##_64(R, e);                      \
        else if (size == 128) name##_128(R, e);               \
        else name##_any(R, e);                                \
    }
#define FOR_SIZES(name, f, type) FOR_SIZES_IF(true, name, f, type, padded(e->n))

/* Both products of a block of entries with R rows, of any type, in float32: attend_float.h, once for an instruction
 * set. */
#define qk_any OF_ISA(qk_any)
#define pv_any OF_ISA(pv_any)

/* e->p[r][i] = e->q[r] . k_i */
void qk_any(enum kv_type type, int R, struct entries *e);

/* e->acc[r] = e->acc[r] * e->shrink[r] + sum of e->p[r][i] v_i */
void pv_any(enum kv_type type, int R, struct entries *e);

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

/* The rows' states for a tile: maxima (times `unit`, NEVER for none), sums of weights, and transposed the weighted sums,
 * zero in channels d .. width - 1. Lanes without a row repeat the first. */
static void load_states(float *max, float *sum, float (*acc)[TILE_ROWS], float unit, int d, int width,
                        const struct attend_row *rows, int m) {
    for (int r = 0; r < TILE_ROWS; r++) {
        const float *state = rows[r < m ? r : 0].state;
        max[r] = state[ATTEND_MAX] > NEVER ? state[ATTEND_MAX] * unit : NEVER;
        sum[r] = state[ATTEND_SUM];
    }
    load_transposed(acc, d, rows, m, true);
    for (int c = d; c < width; c++) memset(acc[c], 0, sizeof acc[c]);
}

static void store_states(const float *max, const float *sum, float (*acc)[TILE_ROWS], float unit, int d,
                         const struct attend_row *rows, int m) {
    store_transposed(acc, d, rows, m);
    for (int r = 0; r < m; r++) {
        rows[r].state[ATTEND_MAX] = max[r] > NEVER ? max[r] / unit : -INFINITY;
        rows[r].state[ATTEND_SUM] = sum[r];
    }
}

#define LOG2_E 1.44269504f /* the scores and maxima of tiles with integer weights are for 2^x */

/* A block's weights, of LANES rows, which are relative to its maxima `top` and add up to block_sum, join those so far:
 * the new maxima, the sums, and what sums so far shrink by and this block's grow by. */
INLINE void join_block(float *max, float *sum, float *shrink, float *grow, vec top, vec block_sum) {
    const vec old = v_load(max), most = v_max(old, top), to_e = v_set(1 / LOG2_E);
    const vec less = v_exp(v_mul(v_sub(old, most), to_e)), more = v_exp(v_mul(v_sub(top, most), to_e));
    v_store(sum, v_fma(v_load(sum), less, v_mul(block_sum, more)));
    v_store(max, most);
    v_store(shrink, less);
    v_store(grow, more);
}
