/* attend_float.h - the products of few rows with a block of entries in float32: lanes are channels. */
#pragma once

#include "attend_pass.h"

/* LANES channels of the products of the rows and four keys. With up to three rows these and the sums fit 16 registers;
 * with four the keys stay there. */
INLINE void add_products(struct pass pass, const uint8_t *const keys[4], const float *const q[FEW], int c,
                         vec sum[FEW][4]) {
    vec x[4];
    if (pass.R < 4) {
        UNROLL for (int r = 0; r < pass.R; r++) x[r] = v_load(q[r] + c);
        UNROLL for (int j = 0; j < 4; j++) {
            vec k = load_at(pass.type, pass.d, keys[j], c);
            UNROLL for (int r = 0; r < pass.R; r++) sum[r][j] = v_fma(x[r], k, sum[r][j]);
        }
        return;
    }
    UNROLL for (int j = 0; j < 4; j++) x[j] = load_at(pass.type, pass.d, keys[j], c);
    UNROLL for (int r = 0; r < pass.R; r++) {
        vec row = v_load(q[r] + c);
        UNROLL for (int j = 0; j < 4; j++) sum[r][j] = v_fma(row, x[j], sum[r][j]);
    }
}

/* Scores of the rows against all entries. */
INLINE void qk_entries(struct pass pass, struct entries *e) {
    const float *q[FEW];
    UNROLL for (int r = 0; r < pass.R; r++) q[r] = e->q[r];
    for (int i = 0; i < pass.n; i += 4) {
        const uint8_t *keys[4];
        UNROLL for (int j = 0; j < 4; j++) keys[j] = row_at(pass, e, e->k, i, j);
        struct soon soon = soon_with_keys(pass, e, 0, pass.d, i);
        const size_t share = 4 * soon.stride / (size_t)(pass.d / LANES); /* of four keys, for LANES channels */
        vec sum[FEW][4];
        UNROLL for (int r = 0; r < pass.R; r++)
            UNROLL for (int j = 0; j < 4; j++) sum[r][j] = v_zero();
        int c = 0;
        NO_UNROLL for (; c + 2 * LANES <= pass.d; c += 2 * LANES) {
            prefetch_next(pass, &soon, 2 * share);
            UNROLL for (int x = 0; x < 2; x++) add_products(pass, keys, q, c + x * LANES, sum);
        }
        for (; c < pass.d; c += LANES) add_products(pass, keys, q, c, sum);
        UNROLL for (int r = 0; r < pass.R; r++) v_sum4(sum[r][0], sum[r][1], sum[r][2], sum[r][3], &e->p[r][i]);
    }
}

/* acc[r] = acc[r] * shrink[r] + sum of p[r][i] v_i, for C vectors of channels from c on. */
INLINE void pv_channels(struct pass pass, int C, const struct entries *e, float (*p)[ATTEND_BLOCK], int c) {
    vec sum[FEW][4];
    UNROLL for (int r = 0; r < pass.R; r++)
        UNROLL for (int j = 0; j < C; j++)
            sum[r][j] = v_mul(v_set(e->shrink[r]), v_load(e->acc[r] + c + j * LANES));
    for (int i = 0; i < pass.n; i += 2) {
        struct soon soon = soon_with_values(pass, e, c, C * LANES, i);
        UNROLL for (int x = 0; x < 2; x++) {
            const uint8_t *row = row_at(pass, e, e->v, i, x);
            vec w[FEW];
            prefetch_next(pass, &soon, soon.stride);
            UNROLL for (int r = 0; r < pass.R; r++) w[r] = v_set(p[r][i + x]);
            UNROLL for (int j = 0; j < C; j++) {
                vec v = load_codes(pass.type, row, c + j * LANES);
                UNROLL for (int r = 0; r < pass.R; r++) sum[r][j] = v_fma(w[r], v, sum[r][j]);
            }
        }
    }
    UNROLL for (int r = 0; r < pass.R; r++)
        UNROLL for (int j = 0; j < C; j++) v_store(e->acc[r] + c + j * LANES, sum[r][j]);
}

/* scaled[r][i] = p[r][i] * the scale of block c / KV_BLOCK of value i. */
INLINE void scale_weights(struct pass pass, const struct entries *e, int c, float (*scaled)[ATTEND_BLOCK]) {
    _Alignas(64) uint16_t scales[ATTEND_BLOCK];
    const uint8_t *first = e->v + kv_scale_at(pass.type, pass.d, c / KV_BLOCK);
    for (int i = 0; i < pass.n; i++) memcpy(&scales[i], row_at(pass, e, first, i, 0), sizeof scales[i]);
    for (int i = 0; i < pass.n; i += LANES) {
        vec scale = v_load_f16((const uint8_t *)(scales + i));
        UNROLL for (int r = 0; r < pass.R; r++) v_store(scaled[r] + i, v_mul(scale, v_load(e->p[r] + i)));
    }
}

INLINE void pv_entries(struct pass pass, struct entries *e) {
    _Alignas(64) float scaled[FEW][ATTEND_BLOCK];
    const int in_block = quantized(pass.type) ? KV_BLOCK / LANES : 4;
    const int C = CHANNELS_OF(pass.R) < in_block ? CHANNELS_OF(pass.R) : in_block;
    float (*p)[ATTEND_BLOCK] = quantized(pass.type) ? scaled : e->p;
    int c = 0;
    for (; c + C * LANES <= pass.d; c += C * LANES) {
        if (quantized(pass.type) && c % KV_BLOCK == 0) scale_weights(pass, e, c, scaled);
        pv_channels(pass, C, e, p, c);
    }
    for (; c < pass.d; c += LANES) {
        if (quantized(pass.type) && c % KV_BLOCK == 0) scale_weights(pass, e, c, scaled);
        pv_channels(pass, 1, e, p, c);
    }
}

/* Copies for the usual head sizes are for what decoding uses even where it has products in integers. */
FOR_ANY(qk_f32, qk_entries, KV_F32)
FOR_SIZES(qk_f16, qk_entries, KV_F16)
FOR_ANY(qk_q8, qk_entries, KV_Q8_0)
FOR_ANY(qk_q4, qk_entries, KV_Q4_0)
FOR_ANY(pv_f32, pv_entries, KV_F32)
FOR_SIZES(pv_f16, pv_entries, KV_F16)
FOR_ANY(pv_q8, pv_entries, KV_Q8_0)
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
