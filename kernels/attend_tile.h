/* attend_tile.h - rows() of attend.h in float32 for any vector width, on top of
 * attend_simd.h.
 *
 * A tile of query rows passes over the packed entries a block at a time; what
 * it needs stays in the first-level cache. Both products have the same form:
 * lanes are rows, and a register tile of KEYS x VECS vectors takes one
 * broadcast key (or value channel) after the other. */
#pragma once

#include "attend_simd.h"

/* Channels are padded with zeros to a whole number of register tiles. */
INLINE int padded_dim(int d) { return (d + KEYS - 1) / KEYS * KEYS; }

/* A block is float k[ATTEND_BLOCK][padded_dim], v[ATTEND_BLOCK][padded_dim], zero behind the last entry. */
static size_t simd_block_bytes(int d) { return sizeof(float) * 2 * ATTEND_BLOCK * (size_t)padded_dim(d); }

static void simd_pack(const struct kv_view *kv, int begin, int n, void *block) {
    int d = kv->d, stride = padded_dim(d);
    float *k = block, *v = k + ATTEND_BLOCK * stride;
    for (int i = 0; i < n; i++, k += stride, v += stride) {
        simd_load(kv->type_k, d, kv->k + (size_t)(begin + i) * kv->k_row_bytes, k);
        simd_load(kv->type_v, d, kv->v + (size_t)(begin + i) * kv->v_row_bytes, v);
        for (int c = d; c < stride; c++) k[c] = v[c] = 0;
    }
    memset(k, 0, sizeof *k * (size_t)((ATTEND_BLOCK - n) * stride));
    memset(v, 0, sizeof *v * (size_t)((ATTEND_BLOCK - n) * stride));
}

/* Query rows and their states, transposed. */
struct tile {
    _Alignas(64) float q[KV_MAX_DIM][TILE_ROWS];
    _Alignas(64) float acc[KV_MAX_DIM][TILE_ROWS];
    _Alignas(64) float p[ATTEND_BLOCK][TILE_ROWS]; /* scores, then weights */
    _Alignas(64) float max[TILE_ROWS], sum[TILE_ROWS], shrink[TILE_ROWS];
    _Alignas(64) float limit[TILE_ROWS];           /* entries of the block that a row sees */
};

/* Scores of all rows against KEYS keys: p[j] = q . k_j. */
INLINE void qk_tile(const struct tile *t, int stride, const float *k, float (*p)[TILE_ROWS]) {
    vec sum[KEYS][VECS];
    UNROLL for (int j = 0; j < KEYS; j++)
        UNROLL for (int x = 0; x < VECS; x++) sum[j][x] = v_zero();
    for (int c = 0; c < stride; c++) {
        vec q[VECS];
        UNROLL for (int x = 0; x < VECS; x++) q[x] = v_load(t->q[c] + x * LANES);
        UNROLL for (int j = 0; j < KEYS; j++) {
            vec y = v_set(k[j * stride + c]);
            UNROLL for (int x = 0; x < VECS; x++) sum[j][x] = v_fma(y, q[x], sum[j][x]);
        }
    }
    UNROLL for (int j = 0; j < KEYS; j++)
        UNROLL for (int x = 0; x < VECS; x++) v_store(p[j] + x * LANES, sum[j][x]);
}

INLINE void softmax_tile(struct tile *t, int n, bool masked) {
    for (int x = 0; x < TILE_ROWS; x += LANES) {
        vec limit = v_load(t->limit + x), old = v_load(t->max + x), max = old, sum = v_zero();
        for (int i = 0; i < n; i++) {
            vec s = v_load(t->p[i] + x);
            if (masked) {
                s = v_below(s, v_set((float)i), limit);
                v_store(t->p[i] + x, s);
            }
            max = v_max(max, s);
        }
        vec floor = v_max(max, v_set(NEVER / 2)); /* a row that has seen nothing yet gets weights of zero */
        for (int i = 0; i < n; i++) {
            vec w = v_exp(v_sub(v_load(t->p[i] + x), floor));
            sum = v_add(sum, w);
            v_store(t->p[i] + x, w);
        }
        vec shrink = v_exp(v_sub(old, max));
        v_store(t->shrink + x, shrink);
        v_store(t->max + x, max);
        v_store(t->sum + x, v_fma(v_load(t->sum + x), shrink, sum));
    }
}

/* KEYS channels of the weighted sums: acc[j] = acc[j] * shrink + sum of p_i v_ij. */
INLINE void pv_tile(struct tile *t, int n, int stride, const float *v, float (*acc)[TILE_ROWS]) {
    vec sum[KEYS][VECS];
    UNROLL for (int j = 0; j < KEYS; j++)
        UNROLL for (int x = 0; x < VECS; x++)
            sum[j][x] = v_mul(v_load(acc[j] + x * LANES), v_load(t->shrink + x * LANES));
    for (int i = 0; i < n; i++) {
        vec p[VECS];
        UNROLL for (int x = 0; x < VECS; x++) p[x] = v_load(t->p[i] + x * LANES);
        UNROLL for (int j = 0; j < KEYS; j++) {
            vec y = v_set(v[i * stride + j]);
            UNROLL for (int x = 0; x < VECS; x++) sum[j][x] = v_fma(y, p[x], sum[j][x]);
        }
    }
    UNROLL for (int j = 0; j < KEYS; j++)
        UNROLL for (int x = 0; x < VECS; x++) v_store(acc[j] + x * LANES, sum[j][x]);
}

static void load_tile(struct tile *t, int d, const struct attend_row *rows, int m) {
    load_states(t->max, t->sum, t->acc, 1, d, padded_dim(d), rows, m);
    load_transposed(t->q, d, rows, m, false);
    for (int c = d; c < padded_dim(d); c++) memset(t->q[c], 0, sizeof t->q[c]);
}

static void simd_rows(int d, const void *blocks, int begin, int n, const struct attend_row *rows, int m) {
    struct tile t;
    int stride = padded_dim(d);
    for (; m > 0; rows += TILE_ROWS, m -= TILE_ROWS) {
        int count = m < TILE_ROWS ? m : TILE_ROWS;
        load_tile(&t, d, rows, count);
        for (int i = 0; i < n; i += ATTEND_BLOCK) {
            const float *k = (const float *)blocks + (size_t)i * 2 * (size_t)stride;
            const float *v = k + ATTEND_BLOCK * stride;
            int in_block = n - i < ATTEND_BLOCK ? n - i : ATTEND_BLOCK, least, most;
            tile_limits(t.limit, rows, count, begin + i, in_block, &least, &most);
            if (most == 0) continue;
            for (int j = 0; j < most; j += KEYS) qk_tile(&t, stride, k + j * stride, t.p + j);
            if (least == most) softmax_tile(&t, most, false);
            else softmax_tile(&t, most, true);
            for (int c = 0; c < stride; c += KEYS) pv_tile(&t, most, stride, v + c, t.acc + c);
        }
        store_states(t.max, t.sum, t.acc, 1, d, rows, count);
    }
}

/* The table's entries that are here. */
#define TILE_KERNELS .pack = simd_pack, .block_bytes = simd_block_bytes, .rows = simd_rows
