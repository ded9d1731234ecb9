/* float_neon.c - products with F32, F16 and BF16 weights for NEON. */
#include <arm_neon.h>
#include <string.h>

#include "inline.h"
#include "simd.h"

#define TILE 4
#define VECTORS 4 /* weight rows of a tile, by fours */

INLINE size_t element_bytes(enum tensor_type type) { return type == TENSOR_F32 ? 4 : 2; }

/* n <= 4 elements of a row from i on as float32, the others 0. */
INLINE float32x4_t load_floats(enum tensor_type type, const uint8_t *row, int i, int n) {
    const uint8_t *p = row + (size_t)i * element_bytes(type);
    uint8_t padded[16] = {0};
    memcpy(padded, p, (size_t)n * element_bytes(type));
    if (type == TENSOR_F32) return vreinterpretq_f32_u8(vld1q_u8(padded));
    uint16x4_t halves = vreinterpret_u16_u8(vld1_u8(padded));
    if (type == TENSOR_F16) return vcvt_f32_f16(vreinterpret_f16_u16(halves));
    return vreinterpretq_f32_u32(vshll_n_u16(halves, 16));
}

/* Four rows at a time. */
INLINE void matvec(enum tensor_type type, const struct weight *w, int begin, int end, const float *x,
                   float *y, bool add) {
    for (int r = begin; r < end; r += 4) {
        float32x4_t sum[4] = {vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0)};
        const uint8_t *row[4];
        for (int i = 0; i < 4; i++) row[i] = w->data + (size_t)(r + i < end ? r + i : end - 1) * w->row_bytes;
        int c = 0;
        for (; c + 4 <= w->cols; c += 4)
            for (int i = 0; i < 4; i++)
                sum[i] = vfmaq_f32(sum[i], load_floats(type, row[i], c, 4), vld1q_f32(x + c));
        if (c < w->cols) {
            float32x4_t rest = load_floats(TENSOR_F32, (const uint8_t *)x, c, w->cols - c);
            for (int i = 0; i < 4; i++)
                sum[i] = vfmaq_f32(sum[i], load_floats(type, row[i], c, w->cols - c), rest);
        }
        for (int i = 0; i < 4 && r + i < end; i++) {
            float dot = vaddvq_f32(sum[i]);
            y[r + i] = add ? y[r + i] + dot : dot;
        }
    }
}

/* Rows begin .. end - 1 as [cols, PANEL] float32; the last stands in for missing
 * ones. Four columns at a time, so that the cache lines written stay around. */
INLINE const float *pack_panel(enum tensor_type type, const struct weight *w, int begin, int end,
                               void *scratch) {
    float *panel = scratch;
    for (int c = 0; c < w->cols; c += 4) {
        int n = w->cols - c < 4 ? w->cols - c : 4;
        for (int r = 0; r < PANEL; r++) {
            const uint8_t *row = w->data + (size_t)(begin + r < end ? begin + r : end - 1) * w->row_bytes;
            float four[4];
            vst1q_f32(four, load_floats(type, row, c, n));
            for (int i = 0; i < n; i++) panel[(c + i) * PANEL + r] = four[i];
        }
    }
    return panel;
}

/* n rows of x, `cols` long, times 16 weight rows of the panel, `rows` of which exist. */
INLINE void run_tile(int n, const float *panel, int cols, const float *x, float *y, size_t y_stride, int rows,
                     bool add) {
    float32x4_t sum[TILE][VECTORS];
    for (int i = 0; i < n; i++)
        for (int j = 0; j < VECTORS; j++) sum[i][j] = vdupq_n_f32(0);
    for (int c = 0; c < cols; c++) {
        float32x4_t w[VECTORS];
        for (int j = 0; j < VECTORS; j++) w[j] = vld1q_f32(panel + c * PANEL + 4 * j);
        for (int i = 0; i < n; i++)
            for (int j = 0; j < VECTORS; j++)
                sum[i][j] = vfmaq_n_f32(sum[i][j], w[j], x[(size_t)i * (size_t)cols + (size_t)c]);
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

INLINE void gemm(enum tensor_type type, const struct weight *w, int begin, int end, const struct acts *a,
                 float *y, size_t y_stride, bool add, void *scratch) {
    const float *panel = pack_panel(type, w, begin, end, scratch);
    for (int v = 0; v < end - begin; v += 4 * VECTORS)
        for (int i = 0, n; i < a->n; i += n) {
            const float *x = a->f32 + (size_t)i * (size_t)a->cols;
            float *out = y + (size_t)i * y_stride + begin + v;
            n = a->n - i >= TILE ? TILE : 1;
            if (n == TILE) run_tile(TILE, panel + v, w->cols, x, out, y_stride, end - begin - v, add);
            else run_tile(1, panel + v, w->cols, x, out, y_stride, end - begin - v, add);
        }
}

#define PRODUCTS(type, suffix)                                                                             \
    void matvec_##suffix##_neon(const struct weight *w, int begin, int end, const struct acts *a, int row, \
                                float *y, bool add, void *scratch) {                                       \
        (void)scratch;                                                                                     \
        matvec(type, w, begin, end, a->f32 + (size_t)row * (size_t)a->cols, y, add);                       \
    }                                                                                                      \
    void gemm_##suffix##_neon(const struct weight *w, int begin, int end, const struct acts *a, float *y,  \
                              size_t y_stride, bool add, void *scratch) {                                  \
        gemm(type, w, begin, end, a, y, y_stride, add, scratch);                                           \
    }

PRODUCTS(TENSOR_F32, f32)
PRODUCTS(TENSOR_F16, f16)
PRODUCTS(TENSOR_BF16, bf16)
