/* float_avx2.c - products with F32, F16 and BF16 weights in 256 bits. */
#include "prefetch.h"
#include "simd.h"
#include "simd_avx2.h"

#include <string.h>

#define TILE 6
#define VECTORS 2 /* the weight rows of a tile, by eights: 12 sums fit the registers */

INLINE size_t element_bytes(enum tensor_type type) { return type == TENSOR_F32 ? 4 : 2; }

/* n <= 8 elements of a row from i on as float32, the others 0. */
INLINE __m256 load_floats(enum tensor_type type, const uint8_t *row, int i, int n) {
    const uint8_t *p = row + (size_t)i * element_bytes(type);
    uint8_t padded[32];
    if (n < 8) {
        memset(padded, 0, sizeof padded);
        memcpy(padded, p, (size_t)n * element_bytes(type));
        p = padded;
    }
    if (type == TENSOR_F32) return _mm256_loadu_ps((const float *)p);
    __m128i halves = _mm_loadu_si128((const __m128i *)p);
    if (type == TENSOR_F16) return _mm256_cvtph_ps(halves);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

/* Four rows at a time. */
INLINE void matvec(enum tensor_type type, const struct weight *w, int begin, int end, const float *x,
                   float *y, bool add) {
    const struct ahead ahead = prefetch_ahead(w, end, 4);
    for (int r = begin; r < end; r += 4) {
        __m256 sum[4] = {0};
        const uint8_t *row[4];
        for (int i = 0; i < 4; i++) row[i] = w->data + (size_t)(r + i < end ? r + i : end - 1) * w->row_bytes;
        int c = 0;
        for (; c + 8 <= w->cols; c += 8) {
            if (c % 16 == 0)
                prefetch(row[0] + 4 * (size_t)c * element_bytes(type), 64 * (int)element_bytes(type), ahead);
            for (int i = 0; i < 4; i++)
                sum[i] = _mm256_fmadd_ps(load_floats(type, row[i], c, 8), _mm256_loadu_ps(x + c), sum[i]);
        }
        if (c < w->cols) {
            __m256 rest = load_first(x + c, w->cols - c);
            for (int i = 0; i < 4; i++)
                sum[i] = _mm256_fmadd_ps(load_floats(type, row[i], c, w->cols - c), rest, sum[i]);
        }
        for (int i = 0; i < 4 && r + i < end; i++) {
            float dot = sum_floats(sum[i]);
            y[r + i] = add ? y[r + i] + dot : dot;
        }
    }
}

/* Rows begin .. end - 1 as [cols, PANEL] float32; the last stands in for missing
 * ones. Eight columns at a time, so that the cache lines written stay around. */
INLINE const float *pack_panel(enum tensor_type type, const struct weight *w, int begin, int end,
                               void *scratch) {
    float *panel = scratch;
    for (int c = 0; c < w->cols; c += 8) {
        int n = w->cols - c < 8 ? w->cols - c : 8;
        for (int r = 0; r < PANEL; r++) {
            const uint8_t *row = w->data + (size_t)(begin + r < end ? begin + r : end - 1) * w->row_bytes;
            float eight[8];
            _mm256_storeu_ps(eight, load_floats(type, row, c, n));
            for (int i = 0; i < n; i++) panel[(c + i) * PANEL + r] = eight[i];
        }
    }
    return panel;
}

/* n rows of x, `cols` long, times 16 weight rows of the panel, `rows` of which exist. */
INLINE void run_tile(int n, const float *panel, int cols, const float *x, float *y, size_t y_stride, int rows,
                     bool add) {
    __m256 sum[TILE][VECTORS];
    for (int i = 0; i < n; i++)
        for (int j = 0; j < VECTORS; j++) sum[i][j] = _mm256_setzero_ps();
    for (int c = 0; c < cols; c++) {
        __m256 w[VECTORS];
        for (int j = 0; j < VECTORS; j++) w[j] = _mm256_load_ps(panel + c * PANEL + 8 * j);
        for (int i = 0; i < n; i++) {
            __m256 value = _mm256_broadcast_ss(x + (size_t)i * (size_t)cols + (size_t)c);
            for (int j = 0; j < VECTORS; j++) sum[i][j] = _mm256_fmadd_ps(w[j], value, sum[i][j]);
        }
    }
    for (int i = 0; i < n; i++)
        for (int j = 0; j < VECTORS; j++) {
            float *out = y + (size_t)i * y_stride + 8 * j;
            if (add) sum[i][j] = _mm256_add_ps(sum[i][j], load_first(out, rows - 8 * j));
            store_first(out, rows - 8 * j, sum[i][j]);
        }
}

INLINE void gemm(enum tensor_type type, const struct weight *w, int begin, int end, const struct acts *a,
                 float *y, size_t y_stride, bool add, void *scratch) {
    const float *panel = pack_panel(type, w, begin, end, scratch);
    for (int v = 0; v < end - begin; v += 8 * VECTORS) {
        float *out = y + begin + v;
        int rows = end - begin - v;
        for (int i = 0, n; i < a->n; i += n) {
            n = a->n - i >= TILE ? TILE : 1;
            const float *x = a->f32 + (size_t)i * (size_t)a->cols;
            if (n == TILE)
                run_tile(TILE, panel + v, w->cols, x, out + (size_t)i * y_stride, y_stride, rows, add);
            else run_tile(1, panel + v, w->cols, x, out + (size_t)i * y_stride, y_stride, rows, add);
        }
    }
}

#define PRODUCTS(type, suffix)                                                                             \
    void matvec_##suffix##_avx2(const struct weight *w, int begin, int end, const struct acts *a, int row, \
                                float *y, bool add, void *scratch) {                                       \
        (void)scratch;                                                                                     \
        matvec(type, w, begin, end, a->f32 + (size_t)row * (size_t)a->cols, y, add);                       \
    }                                                                                                      \
    void gemm_##suffix##_avx2(const struct weight *w, int begin, int end, const struct acts *a, float *y,  \
                              size_t y_stride, bool add, void *scratch) {                                  \
        gemm(type, w, begin, end, a, y, y_stride, add, scratch);                                           \
    }

PRODUCTS(TENSOR_F32, f32)
PRODUCTS(TENSOR_F16, f16)
PRODUCTS(TENSOR_BF16, bf16)
