/* quant_gemm_avx512.h - batches of activations times quantised weights in 512 bits.
 *
 * Included after dot_bytes() is defined, as quant_matvec_avx512.h is. A panel of 32
 * weight rows is unpacked once; then tiles of up to TILE activation rows run
 * over it, each with its 32-bit sums of one group and its float32 results in
 * registers. One microkernel serves every format: those without m are shifted to
 * zero = 128, which the activations' offsets take off again. */
#pragma once

#include <immintrin.h>

#include "internal.h"
#include "quants.h"
#include "transpose_avx512.h"

#define TILE 6
#define VECTORS (PANEL / 16)

/* 32 unpacked weight rows: what belongs together lies side by side. */
struct panel {
    uint8_t *u; /* [cols/4, 32, 4] */
    float *d;   /* [cols/group, 32] */
    float *m;   /* [cols/32, 32] */
};

/* 64 columns of 16 rows into the panel, `shift` added to each byte. */
INLINE void interleave_rows(const uint8_t *rows, __m512i shift, uint8_t *out) {
    __m512i in[16], columns[16];
    for (int i = 0; i < 16; i++) in[i] = _mm512_add_epi8(_mm512_load_si512(rows + i * MAX_BLOCK), shift);
    transpose_16x16(in, columns);
    for (int i = 0; i < 16; i++) _mm512_store_si512(out + i * 4 * PANEL, columns[i]);
}

/* Unpacks rows begin .. end - 1, at most 32; the last stands in for missing ones. */
static struct panel unpack_panel(const struct quant_format *f, const struct weight *w, int begin, int end,
                                 void *scratch) {
    size_t cols = (size_t)w->cols, padded = (cols + 63) / 64 * 64;
    uint8_t *rows = scratch; /* [32, MAX_BLOCK] */
    struct panel p = {.u = rows + PANEL * MAX_BLOCK};
    p.d = (float *)(p.u + padded * PANEL);
    p.m = p.d + cols / (size_t)f->group * PANEL;
    const __m512i shift = _mm512_set1_epi8((char)(f->has_min ? 0 : 128 - f->zero));
    for (int c = 0; c < w->cols; c += MAX_BLOCK) {
        int n = w->cols - c < MAX_BLOCK ? w->cols - c : MAX_BLOCK;
        for (int r = 0; r < PANEL; r++) {
            const uint8_t *row = w->data + (size_t)(begin + r < end ? begin + r : end - 1) * w->row_bytes;
            const uint8_t *block = row + c / f->block * f->bytes;
            float d[MAX_BLOCK / 16], m[MAX_BLOCK / 16];
            for (int i = 0; i < n; i += f->block, block += f->bytes)
                f->unpack(block, rows + r * MAX_BLOCK + i, d + i / f->group, m + i / f->group);
            for (int g = 0; g < n / f->group; g++) p.d[(c / f->group + g) * PANEL + r] = d[g];
            if (f->has_min)
                for (int g = 0; g < n / f->group; g++) p.m[(c / f->group + g) * PANEL + r] = m[g];
        }
        for (int i = 0; i < n; i += 64)
            for (int v = 0; v < VECTORS; v++)
                interleave_rows(rows + v * 16 * MAX_BLOCK + i, shift, p.u + (size_t)(c + i) * PANEL + v * 64);
    }
    return p;
}

struct gemm_out {
    float *y; /* row 0, the panel's first column */
    size_t stride;
    int rows; /* of the panel that exist */
    bool add;
};

/* n activation rows from `row` on, times the panel. */
INLINE void gemm_tile(int n, int group, bool has_min, int groups, const struct panel *p, const struct act_view *v,
                      size_t row, const struct gemm_out *out) {
    __m512 sum[TILE][VECTORS];
    for (int i = 0; i < n; i++)
        for (int j = 0; j < VECTORS; j++) sum[i][j] = _mm512_setzero_ps();
    const int8_t *q = v->q + row * v->q_stride;
    size_t blocks = (size_t)v->blocks, per_block = (size_t)(ACT_BLOCK / group);
    const int32_t *offset = group == 16 ? v->half_offset + 2 * row * blocks : v->offset + row * blocks;
    const float *scale = v->scale + row * blocks, *scaled_sum = v->scaled_sum + row * blocks;
    const uint8_t *u = p->u;
    for (size_t g = 0; g < (size_t)groups; g++) {
        __m512i dot[TILE][VECTORS];
        for (int i = 0; i < n; i++)
            for (int j = 0; j < VECTORS; j++)
                dot[i][j] = has_min ? _mm512_setzero_si512()
                                    : _mm512_set1_epi32(offset[(size_t)i * blocks * per_block + g]);
        for (int c = 0; c < group; c += 4, u += 4 * PANEL) {
            __m512i weights[VECTORS];
            for (int j = 0; j < VECTORS; j++) weights[j] = _mm512_load_si512(u + 64 * j);
            for (int i = 0; i < n; i++) {
                int32_t four;
                memcpy(&four, q + (size_t)i * v->q_stride + g * (size_t)group + (size_t)c, sizeof four);
                for (int j = 0; j < VECTORS; j++) dot[i][j] = dot_bytes(dot[i][j], weights[j], _mm512_set1_epi32(four));
            }
        }
        __m512 d[VECTORS], m[VECTORS];
        for (int j = 0; j < VECTORS; j++) {
            d[j] = _mm512_load_ps(p->d + g * PANEL + 16 * (size_t)j);
            if (has_min) m[j] = _mm512_load_ps(p->m + g * PANEL + 16 * (size_t)j);
        }
        for (int i = 0; i < n; i++) {
            size_t b = (size_t)i * blocks + g / per_block;
            for (int j = 0; j < VECTORS; j++) {
                __m512 part = _mm512_mul_ps(_mm512_cvtepi32_ps(dot[i][j]), d[j]);
                sum[i][j] = _mm512_fmadd_ps(part, _mm512_set1_ps(scale[b]), sum[i][j]);
                if (has_min) sum[i][j] = _mm512_fmadd_ps(m[j], _mm512_set1_ps(scaled_sum[b]), sum[i][j]);
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

INLINE void gemm_panel(int group, bool has_min, const struct weight *w, int begin, int end, const struct acts *a,
                       float *y, size_t y_stride, bool add, void *scratch) {
    struct act_view v = act_view(a);
    struct panel p = unpack_panel(&quant_formats[w->type], w, begin, end, scratch);
    struct gemm_out out = {y + begin, y_stride, end - begin, add};
    int groups = w->cols / group;
    size_t i = 0, n = (size_t)a->n;
    for (; i + TILE <= n; i += TILE) gemm_tile(TILE, group, has_min, groups, &p, &v, i, &out);
    switch (n - i) {
    case 5: gemm_tile(5, group, has_min, groups, &p, &v, i, &out); break;
    case 4: gemm_tile(4, group, has_min, groups, &p, &v, i, &out); break;
    case 3: gemm_tile(3, group, has_min, groups, &p, &v, i, &out); break;
    case 2: gemm_tile(2, group, has_min, groups, &p, &v, i, &out); break;
    case 1: gemm_tile(1, group, has_min, groups, &p, &v, i, &out); break;
    default: break;
    }
}

#define GEMM(name, group, has_min)                                                                               \
    static void name(const struct weight *w, int begin, int end, const struct acts *a, float *y, size_t y_stride, \
                     bool add, void *scratch) {                                                                 \
        gemm_panel(group, has_min, w, begin, end, a, y, y_stride, add, scratch);                                \
    }

GEMM(gemm_zero, 32, false)
GEMM(gemm_min, 32, true)
GEMM(gemm_zero_16, 16, false)
