/* quant_avx512.c - the table for AVX-512 without VNNI. */
#include <immintrin.h>
#include <stdbool.h>

/* Pairs of products fit 16 bits if u < 128. Otherwise even and odd bytes are
 * extended to 16 bits, whose products are summed in 32. */
static inline __m512i dot_bytes(__m512i sum, __m512i u, __m512i q, bool wide) {
    if (!wide) {
        __m512i pairs = _mm512_madd_epi16(_mm512_maddubs_epi16(u, q), _mm512_set1_epi16(1));
        return _mm512_add_epi32(sum, pairs);
    }
    __m512i even_u = _mm512_and_si512(u, _mm512_set1_epi16(0xff)), odd_u = _mm512_srli_epi16(u, 8);
    __m512i even_q = _mm512_srai_epi16(_mm512_slli_epi16(q, 8), 8), odd_q = _mm512_srai_epi16(q, 8);
    return _mm512_add_epi32(
        sum, _mm512_add_epi32(_mm512_madd_epi16(even_u, even_q), _mm512_madd_epi16(odd_u, odd_q)));
}

#include "quant_gemm_avx512.h"
#include "quant_matvec_avx512.h"
#include "simd.h"

GEMM(gemm_min, 32, 0)
GEMM(gemm_zero_8, 32, 8)
GEMM(gemm_zero_16, 32, 16)
GEMM(gemm_zero_32, 16, 32)
GEMM(gemm_zero_128, 32, 128)

const struct kernels kernels_avx512 = {
    .isa = "avx512",
    .max_few = 5,
    .matvec = MATVECS(avx512),
    .matmul =
        {
            [TENSOR_F32] = gemm_f32_avx512,
            [TENSOR_F16] = gemm_f16_avx512,
            [TENSOR_BF16] = gemm_bf16_avx512,
            [TENSOR_Q4_0] = gemm_zero_8,
            [TENSOR_Q4_1] = gemm_min,
            [TENSOR_Q5_0] = gemm_zero_16,
            [TENSOR_Q5_1] = gemm_min,
            [TENSOR_Q8_0] = gemm_zero_128,
            [TENSOR_Q4_K] = gemm_min,
            [TENSOR_Q5_K] = gemm_min,
            [TENSOR_Q6_K] = gemm_zero_32,
        },
    .quantize = quantize_avx512,
    .rmsnorm = rmsnorm_avx512,
    .silu_mul = silu_mul_avx512,
    .vec_add = vec_add_avx512,
};
