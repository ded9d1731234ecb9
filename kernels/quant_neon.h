/* quant_neon.h - products with quantised weights for NEON.
 *
 * Included by the files that define
 *
 *     int32x4_t dot_bytes(int32x4_t sum, int8x16_t a, int8x16_t b)
 *     DOT_LANE(sum, a, b, lane)
 *
 * which add the products of four signed bytes to each 32-bit sum, the second with
 * the four bytes of b's 32-bit element `lane` throughout. Weights are used signed,
 * as u - zero, which needs no offsets. */
#pragma once

#include <arm_neon.h>

#include "inline.h"
#include "plain.h"
#include "quant_panel.h"

#define TILE 4
#define VECTORS 2 /* weight rows of a tile, by fours */

/* A block is unpacked into registers, or at least into the first-level cache. */
INLINE void matvec(enum tensor_type type, const struct weight *w, int begin, int end, const struct acts *a,
                   int row, float *y, bool add) {
    const struct quant_format *f = &quant_formats[type];
    struct act_view x = act_row(a, row);
    const int8x16_t zero = vdupq_n_s8((int8_t)f->zero);
    for (int r = begin; r < end; r++) {
        const uint8_t *p = w->data + (size_t)r * w->row_bytes;
        float32x4_t sum = vdupq_n_f32(0);
        float rest = 0;
        for (int c = 0; c < w->cols; c += f->block, p += f->bytes) {
            uint8_t u[MAX_BLOCK];
            float d[MAX_BLOCK / 16], m[MAX_BLOCK / 16];
            f->unpack(p, 1, u, d, m, 1);
            for (int g = 0; g < f->block / f->group; g++) {
                int32x4_t dot = vdupq_n_s32(0);
                for (int i = g * f->group; i < (g + 1) * f->group; i += 16)
                    dot = dot_bytes(dot, vsubq_s8(vreinterpretq_s8_u8(vld1q_u8(u + i)), zero),
                                    vld1q_s8(x.q + c + i));
                int b = (c + g * f->group) / ACT_BLOCK;
                sum = vfmaq_n_f32(sum, vcvtq_f32_s32(dot), d[g] * x.scale[b]);
                if (f->has_min) rest += m[g] * x.scaled_sum[b];
            }
        }
        float dot = vaddvq_f32(sum) + rest;
        y[r] = add ? y[r] + dot : dot;
    }
}

/* 32-bit sums of a group: weights [group/4, PANEL, 4] times n rows of q. */
INLINE void dot_group(int n, int group, const uint8_t *u, const int8_t *q, size_t q_stride,
                      int32x4_t dot[TILE][VECTORS]) {
    for (int c = 0; c < group; c += 16, u += 16 * PANEL) {
        int8x16_t x[TILE];
        for (int i = 0; i < n; i++) x[i] = vld1q_s8(q + (size_t)i * q_stride + c);
        for (int j = 0; j < VECTORS; j++) {
            const int8_t *w = (const int8_t *)u + 16 * j;
            int8x16_t w0 = vld1q_s8(w), w1 = vld1q_s8(w + 4 * PANEL);
            int8x16_t w2 = vld1q_s8(w + 8 * PANEL), w3 = vld1q_s8(w + 12 * PANEL);
            for (int i = 0; i < n; i++) {
                dot[i][j] = DOT_LANE(dot[i][j], w0, x[i], 0);
                dot[i][j] = DOT_LANE(dot[i][j], w1, x[i], 1);
                dot[i][j] = DOT_LANE(dot[i][j], w2, x[i], 2);
                dot[i][j] = DOT_LANE(dot[i][j], w3, x[i], 3);
            }
        }
    }
}

/* n activation rows times eight rows of the panel, `rows` of which exist. */
INLINE void run_tile(int n, int group, bool has_min, const struct panel *p, int cols,
                     const struct act_view *x, float *y, size_t y_stride, int rows, bool add) {
    float32x4_t sum[TILE][VECTORS];
    for (int i = 0; i < n; i++)
        for (int j = 0; j < VECTORS; j++) sum[i][j] = vdupq_n_f32(0);
    for (int g = 0; g < cols / group; g++) {
        int32x4_t dot[TILE][VECTORS];
        for (int i = 0; i < n; i++)
            for (int j = 0; j < VECTORS; j++) dot[i][j] = vdupq_n_s32(0);
        dot_group(n, group, p->u + g * group * PANEL, x->q + g * group, x->q_stride, dot);
        for (int i = 0; i < n; i++) {
            int b = i * x->blocks + g * group / ACT_BLOCK;
            for (int j = 0; j < VECTORS; j++) {
                float32x4_t part = vmulq_f32(vcvtq_f32_s32(dot[i][j]), vld1q_f32(p->d + g * PANEL + 4 * j));
                sum[i][j] = vfmaq_n_f32(sum[i][j], part, x->scale[b]);
                if (has_min)
                    sum[i][j] = vfmaq_n_f32(sum[i][j], vld1q_f32(p->m + g * PANEL + 4 * j), x->scaled_sum[b]);
            }
        }
    }
    for (int i = 0; i < n; i++) {
        float out[4 * VECTORS];
        for (int j = 0; j < VECTORS; j++) vst1q_f32(out + 4 * j, sum[i][j]);
        for (int j = 0; j < 4 * VECTORS && j < rows; j++) {
            float *to = &y[(size_t)i * y_stride + (size_t)j];
            *to = add ? *to + out[j] : out[j];
        }
    }
}

INLINE void gemm(int group, bool has_min, const struct weight *w, int begin, int end, const struct acts *a,
                 float *y, size_t y_stride, bool add, void *scratch) {
    uint8_t shift = (uint8_t)-quant_formats[w->type].zero;
    struct panel all = unpack_panel(w, begin, end, shift, interleave_plain, scratch);
    for (int v = 0; v < end - begin; v += 4 * VECTORS) {
        struct panel p = {all.u + 4 * v, all.d + v, all.m + v};
        for (int i = 0, n; i < a->n; i += n) {
            struct act_view x = act_row(a, i);
            float *out = y + (size_t)i * y_stride + begin + v;
            n = a->n - i >= TILE ? TILE : 1;
            if (n == TILE)
                run_tile(TILE, group, has_min, &p, w->cols, &x, out, y_stride, end - begin - v, add);
            else run_tile(1, group, has_min, &p, w->cols, &x, out, y_stride, end - begin - v, add);
        }
    }
}

#define MATVEC(name, type)                                                                                \
    static void name(const struct weight *w, int begin, int end, const struct acts *a, int row, float *y, \
                     bool add, void *scratch) {                                                           \
        (void)scratch;                                                                                    \
        matvec(type, w, begin, end, a, row, y, add);                                                      \
    }
#define GEMM(name, group, has_min)                                                               \
    static void name(const struct weight *w, int begin, int end, const struct acts *a, float *y, \
                     size_t y_stride, bool add, void *scratch) {                                 \
        gemm(group, has_min, w, begin, end, a, y, y_stride, add, scratch);                       \
    }

MATVEC(matvec_q4_0, TENSOR_Q4_0)
MATVEC(matvec_q4_1, TENSOR_Q4_1)
MATVEC(matvec_q5_0, TENSOR_Q5_0)
MATVEC(matvec_q5_1, TENSOR_Q5_1)
MATVEC(matvec_q8_0, TENSOR_Q8_0)
MATVEC(matvec_q4_k, TENSOR_Q4_K)
MATVEC(matvec_q5_k, TENSOR_Q5_K)
MATVEC(matvec_q6_k, TENSOR_Q6_K)

GEMM(gemm_zero, 32, false)
GEMM(gemm_min, 32, true)
GEMM(gemm_zero_16, 16, false)

#define NEON_TABLE(name)                                                                                    \
    {                                                                                                       \
        .isa = name, .max_few = 3,                                                                          \
        .matvec = MATVECS(neon),                                                                            \
        .matmul =                                                                                           \
            {                                                                                               \
                [TENSOR_F32] = gemm_f32_neon, [TENSOR_F16] = gemm_f16_neon, [TENSOR_BF16] = gemm_bf16_neon, \
                [TENSOR_Q4_0] = gemm_zero,    [TENSOR_Q4_1] = gemm_min,     [TENSOR_Q5_0] = gemm_zero,      \
                [TENSOR_Q5_1] = gemm_min,     [TENSOR_Q8_0] = gemm_zero,    [TENSOR_Q4_K] = gemm_min,       \
                [TENSOR_Q5_K] = gemm_min,     [TENSOR_Q6_K] = gemm_zero_16,                                 \
            },                                                                                              \
        .quantize = plain_quantize, .rmsnorm = plain_rmsnorm, .silu_mul = silu_mul_neon,                    \
        .vec_add = plain_vec_add,                                                                           \
    }
