/* float_avx512.c - products with F32, F16 and BF16 weights in 512 bits. */
#include <immintrin.h>

#include "prefetch.h"
#include "simd.h"
#include "simd_avx512.h"

#define TILE 12
#define VECTORS (PANEL / 16)

INLINE size_t element_bytes(enum tensor_type type) { return type == TENSOR_F32 ? 4 : 2; }

/* Sixteen elements of a row from i on as float32; those not in the mask are 0. */
INLINE __m512 load_floats(enum tensor_type type, const uint8_t *row, int i, __mmask16 mask) {
    const uint8_t *p = row + (size_t)i * element_bytes(type);
    if (type == TENSOR_F32) return _mm512_maskz_loadu_ps(mask, p);
    __m256i halves = _mm256_maskz_loadu_epi16(mask, p);
    if (type == TENSOR_F16) return _mm512_cvtph_ps(halves);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

/* Four rows at a time. */
INLINE void matvec(enum tensor_type type, const struct weight *w, int begin, int end, const float *x,
                   float *y, bool add) {
    const struct ahead ahead = prefetch_ahead(w, end, 4);
    for (int r = begin; r < end; r += 4) {
        __m512 sum[4] = {0};
        const uint8_t *row[4];
        for (int i = 0; i < 4; i++) row[i] = w->data + (size_t)(r + i < end ? r + i : end - 1) * w->row_bytes;
        int c = 0;
        for (; c + 16 <= w->cols; c += 16) {
            prefetch(row[0] + 4 * (size_t)c * element_bytes(type), 64 * (int)element_bytes(type), ahead);
            for (int i = 0; i < 4; i++)
                sum[i] =
                    _mm512_fmadd_ps(load_floats(type, row[i], c, 0xffff), _mm512_loadu_ps(x + c), sum[i]);
        }
        if (c < w->cols) {
            __mmask16 mask = first_lanes(w->cols - c);
            for (int i = 0; i < 4; i++)
                sum[i] = _mm512_fmadd_ps(load_floats(type, row[i], c, mask),
                                         _mm512_maskz_loadu_ps(mask, x + c), sum[i]);
        }
        store_four(y + r, sum_four(sum, _mm512_setzero_ps()), end - r < 4 ? end - r : 4, add);
    }
}

/* Rows begin .. end - 1 as [cols, 32] float32; the last stands in for missing ones. */
INLINE float *pack_panel(enum tensor_type type, const struct weight *w, int begin, int end, void *scratch) {
    float *panel = scratch;
    for (int v = 0; v < PANEL; v += 16)
        for (int c = 0; c < w->cols; c += 16) {
            int n = w->cols - c < 16 ? w->cols - c : 16;
            __m512i rows[16], columns[16];
            for (int i = 0; i < 16; i++) {
                int r = begin + v + i < end ? begin + v + i : end - 1;
                rows[i] = _mm512_castps_si512(
                    load_floats(type, w->data + (size_t)r * w->row_bytes, c, first_lanes(n)));
            }
            transpose_16x16(rows, columns);
            for (int i = 0; i < n; i++) _mm512_store_si512(panel + (c + i) * PANEL + v, columns[i]);
        }
    return panel;
}

struct tile_out {
    float *y; /* row 0, the panel's first column */
    size_t stride;
    int rows; /* of the panel that exist */
    bool add;
};

/* n rows of x, `cols` long, times the panel, to rows `row` on of the output. */
INLINE void run_tile(int n, const float *panel, int cols, const float *x, size_t row,
                     const struct tile_out *out) {
    __m512 sum[TILE][VECTORS];
    for (int i = 0; i < n; i++)
        for (int j = 0; j < VECTORS; j++) sum[i][j] = _mm512_setzero_ps();
    x += row * (size_t)cols;
    for (int c = 0; c < cols; c++) {
        __m512 w[VECTORS];
        for (int j = 0; j < VECTORS; j++) w[j] = _mm512_load_ps(panel + c * PANEL + 16 * j);
        for (int i = 0; i < n; i++)
            for (int j = 0; j < VECTORS; j++)
                sum[i][j] =
                    _mm512_fmadd_ps(w[j], _mm512_set1_ps(x[(size_t)i * (size_t)cols + (size_t)c]), sum[i][j]);
    }
    for (int i = 0; i < n; i++)
        for (int j = 0; j < VECTORS; j++) {
            int left = out->rows - 16 * j;
            if (left <= 0) break;
            float *y = out->y + (row + (size_t)i) * out->stride + 16 * j;
            if (out->add) sum[i][j] = _mm512_add_ps(sum[i][j], _mm512_maskz_loadu_ps(first_lanes(left), y));
            _mm512_mask_storeu_ps(y, first_lanes(left), sum[i][j]);
        }
}

INLINE void gemm(enum tensor_type type, const struct weight *w, int begin, int end, const struct acts *a,
                 float *y, size_t y_stride, bool add, void *scratch) {
    const float *panel = pack_panel(type, w, begin, end, scratch);
    struct tile_out out = {y + begin, y_stride, end - begin, add};
    size_t i = 0, n = (size_t)a->n;
    for (; i + TILE <= n; i += TILE) run_tile(TILE, panel, w->cols, a->f32, i, &out);
    for (; i + 4 <= n; i += 4) run_tile(4, panel, w->cols, a->f32, i, &out);
    for (; i < n; i++) run_tile(1, panel, w->cols, a->f32, i, &out);
}

#define PRODUCTS(type, suffix)                                                                               \
    void matvec_##suffix##_avx512(const struct weight *w, int begin, int end, const struct acts *a, int row, \
                                  float *y, bool add, void *scratch) {                                       \
        (void)scratch;                                                                                       \
        matvec(type, w, begin, end, a->f32 + (size_t)row * (size_t)a->cols, y, add);                         \
    }                                                                                                        \
    void gemm_##suffix##_avx512(const struct weight *w, int begin, int end, const struct acts *a, float *y,  \
                                size_t y_stride, bool add, void *scratch) {                                  \
        gemm(type, w, begin, end, a, y, y_stride, add, scratch);                                             \
    }

PRODUCTS(TENSOR_F32, f32)
PRODUCTS(TENSOR_F16, f16)
PRODUCTS(TENSOR_BF16, bf16)
