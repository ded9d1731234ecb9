/* quant_gemm_avx512.h - batches of activations times quantised weights in 512 bits.
 *
 * Included after dot_bytes() is defined, as quant_matvec_avx512.h is. A panel of
 * 32 weight rows is unpacked once; then tiles of up to TILE activation rows run
 * over it, each with its 32-bit sums of one group and its float32 results in
 * registers. One microkernel serves every format. GEMM(name, group, zero) makes
 * it for formats of that group size which either have an m, if zero is 0, or are
 * shifted to that zero. */
#pragma once

#include <immintrin.h>

#include "quant_panel.h"
#include "simd_avx512.h"

#define TILE 6
#define VECTORS (PANEL / 16)

static void interleave_512(const uint8_t *rows, int cols, uint8_t shift, uint8_t *out) {
    const __m512i add = _mm512_set1_epi8((char)shift);
    for (int c = 0; c < cols; c += 64)
        for (int v = 0; v < VECTORS; v++) {
            const uint8_t *in = rows + v * 16 * MAX_BLOCK + c;
            __m512i row[16], column[16];
            for (int i = 0; i < 16; i++) row[i] = _mm512_add_epi8(_mm512_load_si512(in + i * MAX_BLOCK), add);
            transpose_16x16(row, column);
            for (int i = 0; i < 16; i++) _mm512_store_si512(out + (c + 4 * i) * PANEL + v * 64, column[i]);
        }
}

struct gemm_out {
    float *y; /* row 0, the panel's first column */
    size_t stride;
    int rows; /* of the panel that exist */
    bool add;
};

/* A sum of products starts with the bits of this float, 1.5 * 2^23, so that it ends
 * as the float 1.5 * 2^23 + sum: no conversion, and the number is taken off in the
 * multiplication by d. All sums are below 2^22. */
#define SUM_BIAS 0x1.8p23f
#define SUM_BIAS_BITS 0x4b400000

/* What else it starts with: -zero * sum(q), from that for zero = 128. */
INLINE __m512i start_dot(const int32_t *offset, int zero) {
    const __m512i bias = _mm512_set1_epi32(SUM_BIAS_BITS);
    switch (zero) {
    case 128: return _mm512_add_epi32(bias, _mm512_set1_epi32(*offset));
    case 32: return _mm512_add_epi32(bias, _mm512_set1_epi32(*offset >> 2));
    case 16: return _mm512_add_epi32(bias, _mm512_set1_epi32(*offset >> 3));
    case 8: return _mm512_add_epi32(bias, _mm512_set1_epi32(*offset >> 4));
    default: return bias;
    }
}

/* What takes the bias off, where formats have no m, in the place of that: -bias * d, for each of n groups. */
static void fill_bias(struct panel *p, size_t n) {
    for (size_t i = 0; i < n * PANEL; i += 16)
        _mm512_store_ps(p->m + i, _mm512_mul_ps(_mm512_load_ps(p->d + i), _mm512_set1_ps(-SUM_BIAS)));
}

/* d * sum, rounded once: the product with the bias is exact, as d has few bits. */
INLINE __m512 scale_dot(__m512i dot, __m512 d, __m512 minus_bias_d) {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(dot), d, minus_bias_d);
}

/* What a tile will be added to, which nobody has touched for a while. */
INLINE void prefetch_results(int n, size_t row, const struct gemm_out *out) {
    for (int i = 0; i < n; i++)
        for (int j = 0; j < VECTORS; j++)
            __builtin_prefetch(out->y + (row + (size_t)i) * out->stride + 16 * j);
}

/* n activation rows from `row` on, times the panel. */
INLINE void gemm_tile(int n, int group, int zero, int groups, const struct panel *p, const struct act_view *v,
                      size_t row, const struct gemm_out *out) {
    __m512 sum[TILE][VECTORS];
    for (int i = 0; i < n; i++)
        for (int j = 0; j < VECTORS; j++) sum[i][j] = _mm512_setzero_ps();
    if (out->add) prefetch_results(n, row, out);
    const int8_t *q = v->q + row * v->q_stride;
    size_t blocks = (size_t)v->blocks, per_block = (size_t)(ACT_BLOCK / group);
    const int32_t *offset = group == 16 ? v->half_offset + 2 * row * blocks : v->offset + row * blocks;
    const float *scale = v->scale + row * blocks, *scaled_sum = v->scaled_sum + row * blocks;
    const uint8_t *u = p->u;
    for (size_t g = 0; g < (size_t)groups; g++) {
        __m512i dot[TILE][VECTORS];
        for (int i = 0; i < n; i++)
            for (int j = 0; j < VECTORS; j++)
                dot[i][j] = start_dot(&offset[(size_t)i * blocks * per_block + g], zero);
        for (int c = 0; c < group; c += 4, u += 4 * PANEL) {
            __m512i weights[VECTORS];
            for (int j = 0; j < VECTORS; j++) weights[j] = _mm512_load_si512(u + 64 * j);
            for (int i = 0; i < n; i++) {
                int32_t four;
                memcpy(&four, q + (size_t)i * v->q_stride + g * (size_t)group + (size_t)c, sizeof four);
                for (int j = 0; j < VECTORS; j++)
                    dot[i][j] = dot_bytes(dot[i][j], weights[j], _mm512_set1_epi32(four), zero == 128);
            }
        }
        __m512 d[VECTORS], m[VECTORS], minus_bias_d[VECTORS];
        for (int j = 0; j < VECTORS; j++) {
            d[j] = _mm512_load_ps(p->d + g * PANEL + 16 * (size_t)j);
            m[j] = _mm512_load_ps(p->m + g * PANEL + 16 * (size_t)j);
            minus_bias_d[j] = zero ? m[j] : _mm512_mul_ps(d[j], _mm512_set1_ps(-SUM_BIAS));
        }
        for (int i = 0; i < n; i++) {
            size_t b = (size_t)i * blocks + g / per_block;
            for (int j = 0; j < VECTORS; j++) {
                __m512 part = scale_dot(dot[i][j], d[j], minus_bias_d[j]);
                sum[i][j] = _mm512_fmadd_ps(part, _mm512_set1_ps(scale[b]), sum[i][j]);
                if (!zero) sum[i][j] = _mm512_fmadd_ps(m[j], _mm512_set1_ps(scaled_sum[b]), sum[i][j]);
            }
        }
    }
    for (int i = 0; i < n; i++)
        for (int j = 0; j < VECTORS; j++) {
            int left = out->rows - 16 * j;
            if (left <= 0) break;
            __mmask16 mask = (__mmask16)(left < 16 ? (1 << left) - 1 : 0xffff);
            float *y = out->y + (row + (size_t)i) * out->stride + 16 * j;
            if (out->add) sum[i][j] = _mm512_add_ps(sum[i][j], _mm512_maskz_loadu_ps(mask, y));
            _mm512_mask_storeu_ps(y, mask, sum[i][j]);
        }
}

/* Activation rows from `row` on. */
INLINE void run_tiles(int group, int zero, int groups, const struct panel *p, const struct acts *a, int row,
                      const struct gemm_out *out) {
    struct act_view v = act_view(a);
    size_t i = (size_t)row, n = (size_t)a->n;
    for (; i + TILE <= n; i += TILE) gemm_tile(TILE, group, zero, groups, p, &v, i, out);
    switch (n - i) {
    case 5: gemm_tile(5, group, zero, groups, p, &v, i, out); break;
    case 4: gemm_tile(4, group, zero, groups, p, &v, i, out); break;
    case 3: gemm_tile(3, group, zero, groups, p, &v, i, out); break;
    case 2: gemm_tile(2, group, zero, groups, p, &v, i, out); break;
    case 1: gemm_tile(1, group, zero, groups, p, &v, i, out); break;
    default: break;
    }
}

INLINE void gemm_panel(int group, int zero, const struct weight *w, int begin, int end, const struct acts *a,
                       float *y, size_t y_stride, bool add, void *scratch) {
    uint8_t shift = (uint8_t)(zero - quant_formats[w->type].zero);
    struct panel p = unpack_panel(w, begin, end, shift, interleave_512, scratch);
    if (zero) fill_bias(&p, (size_t)(w->cols / group));
    struct gemm_out out = {y + begin, y_stride, end - begin, add};
    run_tiles(group, zero, w->cols / group, &p, a, 0, &out);
}

#define GEMM(name, group, zero)                                                                  \
    static void name(const struct weight *w, int begin, int end, const struct acts *a, float *y, \
                     size_t y_stride, bool add, void *scratch) {                                 \
        gemm_panel(group, zero, w, begin, end, a, y, y_stride, add, scratch);                    \
    }
