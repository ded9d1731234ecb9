/* attend_float.h - the products of few rows with a block of entries in float32: lanes are channels. */
#pragma once

#include "attend_simd.h"

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
INLINE void qk_entries(enum kv_type type, int R, int d, int n, struct entries *e) {
    const size_t part = 4 * kv_row_bytes(type, d) / (size_t)(d / LANES); /* of four keys, for LANES channels */
    for (int i = 0; i < n; i += 4) {
        vec sum[FEW][4];
        UNROLL for (int r = 0; r < R; r++)
            UNROLL for (int j = 0; j < 4; j++) sum[r][j] = v_zero();
        const struct soon soon = soon_after(e->k[i], e->ahead_k);
        size_t asked = 0;
        for (int c = 0; c < d; c += LANES, asked += part) {
            prefetch_part(soon, asked, asked + part);
            add_products(type, R, d, &e->k[i], e->q, c, sum);
        }
        UNROLL for (int r = 0; r < R; r++) v_sum4(sum[r][0], sum[r][1], sum[r][2], sum[r][3], &e->p[r][i]);
    }
}

/* acc[r] = acc[r] * shrink[r] + sum of p[r][i] v_i, for C vectors of channels from c on. The first
 * channels' turn prefetches later entries: one by one, so that memory is never without work. */
INLINE void pv_channels(enum kv_type type, int R, int C, int d, int n, const struct entries *e,
                        float (*p)[ATTEND_BLOCK], int c) {
    vec sum[FEW][4];
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int j = 0; j < C; j++)
            sum[r][j] = v_mul(v_set(e->shrink[r]), v_load(e->acc[r] + c + j * LANES));
    for (int i = 0; i < n; i++) {
        vec w[FEW];
        if (c == 0) prefetch_part(soon_after(e->v[i], e->ahead_v), 0, kv_row_bytes(type, d));
        UNROLL for (int r = 0; r < R; r++) w[r] = v_set(p[r][i]);
        UNROLL for (int j = 0; j < C; j++) {
            vec v = load_codes(type, e->v[i], c + j * LANES);
            UNROLL for (int r = 0; r < R; r++) sum[r][j] = v_fma(w[r], v, sum[r][j]);
        }
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int j = 0; j < C; j++) v_store(e->acc[r] + c + j * LANES, sum[r][j]);
}

/* scaled[r][i] = p[r][i] * the scale of block c / KV_BLOCK of value i. */
INLINE void scale_weights(enum kv_type type, int R, int d, int n, const struct entries *e, int c,
                          float (*scaled)[ATTEND_BLOCK]) {
    _Alignas(64) uint16_t scales[ATTEND_BLOCK];
    int padded = whole_vectors(n);
    for (int i = 0; i < n; i++) memcpy(&scales[i], e->v[i] + kv_scale_at(type, d, c / KV_BLOCK), 2);
    for (int i = n; i < padded; i++) scales[i] = 0;
    for (int i = 0; i < padded; i += LANES) {
        vec scale = v_load_f16((const uint8_t *)(scales + i));
        UNROLL for (int r = 0; r < R; r++) v_store(scaled[r] + i, v_mul(scale, v_load(e->p[r] + i)));
    }
}

INLINE void pv_entries(enum kv_type type, int R, int d, int n, struct entries *e) {
    _Alignas(64) float scaled[FEW][ATTEND_BLOCK];
    const int in_block = quantized(type) ? KV_BLOCK / LANES : 4;
    const int C = CHANNELS_OF(R) < in_block ? CHANNELS_OF(R) : in_block;
    float (*p)[ATTEND_BLOCK] = quantized(type) ? scaled : e->p;
    int c = 0;
    for (; c + C * LANES <= d; c += C * LANES) {
        if (quantized(type) && c % KV_BLOCK == 0) scale_weights(type, R, d, n, e, c, scaled);
        pv_channels(type, R, C, d, n, e, p, c);
    }
    for (; c < d; c += LANES) {
        if (quantized(type) && c % KV_BLOCK == 0) scale_weights(type, R, d, n, e, c, scaled);
        pv_channels(type, R, 1, d, n, e, p, c);
    }
}

/* Copies for the usual head sizes are for what decoding uses even where it has products in integers. */
FOR_ROWS(qk_f32, qk_entries, KV_F32, e->d, e->n)
FOR_SIZES(qk_f16, qk_entries, KV_F16)
FOR_ROWS(qk_q8, qk_entries, KV_Q8_0, e->d, e->n)
FOR_ROWS(qk_q4, qk_entries, KV_Q4_0, e->d, e->n)
FOR_ROWS(pv_f32, pv_entries, KV_F32, e->d, e->n)
FOR_SIZES(pv_f16, pv_entries, KV_F16)
FOR_ROWS(pv_q8, pv_entries, KV_Q8_0, e->d, e->n)
FOR_SIZES(pv_q4, pv_entries, KV_Q4_0)

typedef void products(int R, struct entries *e);

void qk_any(enum kv_type type, int R, struct entries *e) {
    static products *const qk[] = {[KV_F32] = qk_f32, [KV_F16] = qk_f16, [KV_Q8_0] = qk_q8, [KV_Q4_0] = qk_q4};
    qk[type](R, e);
}

void pv_any(enum kv_type type, int R, struct entries *e) {
    static products *const pv[] = {[KV_F32] = pv_f32, [KV_F16] = pv_f16, [KV_Q8_0] = pv_q8, [KV_Q4_0] = pv_q4};
    pv[type](R, e);
}

#define QK qk_any
#define PV pv_any
