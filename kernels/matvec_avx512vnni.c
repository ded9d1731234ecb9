/* matvec_avx512vnni.c - matrix-vector products with VNNI. */
#include <immintrin.h>

static inline __m512i dot_bytes(__m512i sum, __m512i u, __m512i q) { return _mm512_dpbusd_epi32(sum, u, q); }

#include "gemm_avx512.h"
#include "matvec_avx512.h"
#include "plain.h"

const struct kernels kernels_avx512vnni = {
    .isa = "avx512vnni",
    .matvec = {[TENSOR_F32] = plain_matmul_float, [TENSOR_F16] = plain_matmul_float, [TENSOR_BF16] = plain_matmul_float,
        [TENSOR_Q4_0]=matvec_q4_0, [TENSOR_Q4_1]=matvec_q4_1, [TENSOR_Q5_0]=matvec_q5_0, [TENSOR_Q5_1]=matvec_q5_1,[TENSOR_Q8_0]=matvec_q8_0,[TENSOR_Q4_K] = matvec_q4_k, [TENSOR_Q5_K] = matvec_q5_k, [TENSOR_Q6_K] = matvec_q6_k},
    .matmul = {
        [TENSOR_F32] = plain_matmul_float, [TENSOR_F16] = plain_matmul_float, [TENSOR_BF16] = plain_matmul_float,
        [TENSOR_Q4_0] = gemm_zero, [TENSOR_Q4_1] = gemm_min, [TENSOR_Q5_0] = gemm_zero,
        [TENSOR_Q5_1] = gemm_min, [TENSOR_Q8_0] = gemm_zero, [TENSOR_Q4_K] = gemm_min,
        [TENSOR_Q5_K] = gemm_min, [TENSOR_Q6_K] = gemm_zero_16,
    },
    .quantize = plain_quantize,
    .rmsnorm = plain_rmsnorm,
    .silu_mul = plain_silu_mul,
    .vec_add = plain_vec_add,
};
