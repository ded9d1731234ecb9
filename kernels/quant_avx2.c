/* quant_avx2.c - quantised weights in 256 bits, and the AVX2 table. */
#include "plain.h"
#include "quant_gemm_avx2.h"
#include "quant_matvec_avx2.h"

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
