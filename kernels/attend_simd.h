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
 * attend_pass.h goes on from here for few rows. attend_float.h, attend_few.h and attend_tile.h have the functions; their
 * plain C twin is attend.c. */
#pragma once

#include <math.h>
#include <string.h>

#include "attend_internal.h"
#include "inline.h"

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
