/* quant_avx2.c - batches times quantised weights in 256 bits, and the AVX2 table. */
#include "plain.h"
#include "quant_matvec_avx2.h"
#include "quant_panel.h"

#define TILE 2
#define VECTORS 2 /* weight rows of a tile, by eights */

/* How a format's bytes are multiplied. */
struct recipe {
    int group;
    int zero;  /* -1: the panel is signed */
    int steps; /* products of two bytes whose sum fits 16 bits */
};

/* 32-bit sums of a group: weights [group/4, PANEL, 4] times n rows of q. */
INLINE void dot_group(int n, struct recipe recipe, const uint8_t *u, const int8_t *q, size_t q_stride,
                      __m256i dot[TILE][VECTORS]) {
    for (int c = 0; c < recipe.group; c += 4 * recipe.steps) {
        __m256i sum[TILE][VECTORS];
        for (int s = 0; s < recipe.steps; s++) {
            const uint8_t *weights = u + (c + 4 * s) * PANEL;
            for (int i = 0; i < n; i++) {
                int32_t four;
                memcpy(&four, q + (size_t)i * q_stride + c + 4 * s, sizeof four);
                for (int j = 0; j < VECTORS; j++) {
                    __m256i w = _mm256_load_si256((const __m256i *)(weights + 32 * j)),
                            x = _mm256_set1_epi32(four);
                    __m256i pairs = recipe.zero < 0
                                        ? _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w))
                                        : _mm256_maddubs_epi16(w, x);
                    sum[i][j] = s == 0 ? pairs : _mm256_add_epi16(sum[i][j], pairs);
                    __asm__("" : "+x"(sum[i][j])); /* keeps gcc from adding up in a tree, which spills */
                }
            }
        }
        for (int i = 0; i < n; i++)
            for (int j = 0; j < VECTORS; j++)
                dot[i][j] = _mm256_add_epi32(dot[i][j], _mm256_madd_epi16(sum[i][j], _mm256_set1_epi16(1)));
    }
}

/* n activation rows times 16 rows of the panel, `rows` of which exist. */
INLINE void run_tile(int n, struct recipe recipe, const struct panel *p, int cols, const struct act_view *x,
                     float *y, size_t y_stride, int rows, bool add) {
    __m256 sum[TILE][VECTORS];
    for (int i = 0; i < n; i++)
        for (int j = 0; j < VECTORS; j++) sum[i][j] = _mm256_setzero_ps();
    int per_block = ACT_BLOCK / recipe.group;
    const int32_t *offset = recipe.group == 16 ? x->half_offset : x->offset;
    for (int g = 0; g < cols / recipe.group; g++) {
        __m256i dot[TILE][VECTORS];
        for (int i = 0; i < n; i++)
            for (int j = 0; j < VECTORS; j++)
                dot[i][j] = recipe.zero > 0
                                ? _mm256_set1_epi32(offset[i * x->blocks * per_block + g] / 128 * recipe.zero)
                                : _mm256_setzero_si256();
        dot_group(n, recipe, p->u + g * recipe.group * PANEL, x->q + g * recipe.group, x->q_stride, dot);
        for (int i = 0; i < n; i++)
            for (int j = 0; j < VECTORS; j++) {
                int b = i * x->blocks + g / per_block;
                __m256 part =
                    _mm256_mul_ps(_mm256_cvtepi32_ps(dot[i][j]), _mm256_load_ps(p->d + g * PANEL + 8 * j));
                sum[i][j] = _mm256_fmadd_ps(part, _mm256_broadcast_ss(x->scale + b), sum[i][j]);
                if (recipe.zero == 0)
                    sum[i][j] = _mm256_fmadd_ps(_mm256_load_ps(p->m + g * PANEL + 8 * j),
                                                _mm256_broadcast_ss(x->scaled_sum + b), sum[i][j]);
            }
    }
    for (int i = 0; i < n; i++)
        for (int j = 0; j < VECTORS; j++) {
            __m256i mask = first_lanes(rows - 8 * j);
            float *out = y + (size_t)i * y_stride + 8 * j;
            if (add) sum[i][j] = _mm256_add_ps(sum[i][j], _mm256_maskload_ps(out, mask));
            _mm256_maskstore_ps(out, mask, sum[i][j]);
        }
}

INLINE void gemm(struct recipe recipe, const struct weight *w, int begin, int end, const struct acts *a,
                 float *y, size_t y_stride, bool add, void *scratch) {
    uint8_t shift = (uint8_t)(recipe.zero < 0 ? -quant_formats[w->type].zero : 0);
    struct panel all = unpack_panel(w, begin, end, shift, interleave_plain, scratch);
    for (int v = 0; v < end - begin; v += 8 * VECTORS) {
        struct panel p = {all.u + 4 * v, all.d + v, all.m + v};
        for (int i = 0; i < a->n; i += TILE) {
            struct act_view x = act_row(a, i);
            float *out = y + (size_t)i * y_stride + begin + v;
            if (a->n - i >= TILE)
                run_tile(TILE, recipe, &p, w->cols, &x, out, y_stride, end - begin - v, add);
            else run_tile(1, recipe, &p, w->cols, &x, out, y_stride, end - begin - v, add);
        }
    }
}

#define GEMM(name, ...)                                                                          \
    static void name(const struct weight *w, int begin, int end, const struct acts *a, float *y, \
                     size_t y_stride, bool add, void *scratch) {                                 \
        gemm((struct recipe){__VA_ARGS__}, w, begin, end, a, y, y_stride, add, scratch);         \
    }

/* A step is at most 2 * 127 * the largest u. */
GEMM(gemm_4_zero, 32, 8, 8)
GEMM(gemm_4_min, 32, 0, 8)
GEMM(gemm_5_zero, 32, 16, 4)
GEMM(gemm_5_min, 32, 0, 4)
GEMM(gemm_6_zero, 16, 32, 2)
GEMM(gemm_8_signed, 32, -1, 1)

const struct kernels kernels_avx2 = {
    .isa = "avx2",
    .max_few = 3,
    .matvec = MATVECS(avx2),
    .matmul =
        {
            [TENSOR_F32] = gemm_f32_avx2,
            [TENSOR_F16] = gemm_f16_avx2,
            [TENSOR_BF16] = gemm_bf16_avx2,
            [TENSOR_Q4_0] = gemm_4_zero,
            [TENSOR_Q4_1] = gemm_4_min,
            [TENSOR_Q5_0] = gemm_5_zero,
            [TENSOR_Q5_1] = gemm_5_min,
            [TENSOR_Q8_0] = gemm_8_signed,
            [TENSOR_Q4_K] = gemm_4_min,
            [TENSOR_Q5_K] = gemm_5_min,
            [TENSOR_Q6_K] = gemm_6_zero,
        },
    .quantize = quantize_avx2,
    .rmsnorm = rmsnorm_avx2,
    .silu_mul = silu_mul_avx2,
    .vec_add = vec_add_avx2,
};
