/* quant_avx512vnni.c - the tables for AVX-512 with VNNI, and for AMX. */
#include <immintrin.h>
#include <stdbool.h>

static inline __m512i dot_bytes(__m512i sum, __m512i u, __m512i q, bool wide) {
    (void)wide;
    return _mm512_dpbusd_epi32(sum, u, q);
}

#include "quant_gemm_avx512.h"
#include "quant_matvec_avx512.h"
#include "simd.h"

GEMM(gemm_min, 32, 0)
GEMM(gemm_zero, 32, 128)
GEMM(gemm_zero_16, 16, 128)

#define GEMMS                                                                                             \
    {                                                                                                     \
        [TENSOR_F32] = gemm_f32_avx512, [TENSOR_F16] = gemm_f16_avx512, [TENSOR_BF16] = gemm_bf16_avx512, \
        [TENSOR_Q4_0] = gemm_zero, [TENSOR_Q4_1] = gemm_min, [TENSOR_Q5_0] = gemm_zero,                   \
        [TENSOR_Q5_1] = gemm_min, [TENSOR_Q8_0] = gemm_zero, [TENSOR_Q4_K] = gemm_min,                    \
        [TENSOR_Q5_K] = gemm_min, [TENSOR_Q6_K] = gemm_zero_16,                                           \
    }

const struct kernels kernels_avx512vnni = {
    .isa = "avx512vnni",
    .max_few = 5,
    .matvec = MATVECS(avx512),
    .matmul = GEMMS,
    .quantize = quantize_avx512,
    .rmsnorm = rmsnorm_avx512,
    .silu_mul = silu_mul_avx512,
    .vec_add = vec_add_avx512,
};

/* AMX is for large batches; the rest is as above. */
const struct kernels kernels_amx = {
    .isa = "amx",
    .max_few = 5,
    .tiles_from = AMX_LEAST,
    .tiles = gemm_amx,
    .matvec = MATVECS(avx512),
    .matmul = GEMMS,
    .quantize = quantize_amx,
    .rmsnorm = rmsnorm_avx512,
    .silu_mul = silu_mul_avx512,
    .vec_add = vec_add_avx512,
};
