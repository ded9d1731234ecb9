/* simd.h - kernels that more than one instruction set's table uses. */
#pragma once

#include <math.h>

#include "internal.h"

#define DECLARE_MATVEC(name)                                                                                 \
    void name(const struct weight *w, int begin, int end, const struct acts *a, int row, float *y, bool add, \
              void *scratch)
#define DECLARE_MATMUL(name)                                                                               \
    void name(const struct weight *w, int begin, int end, const struct acts *a, float *y, size_t y_stride, \
              bool add, void *scratch)

/* One of each for an instruction set. */
#define DECLARE_FLOAT_PRODUCTS(isa)    \
    DECLARE_MATVEC(matvec_f32_##isa);  \
    DECLARE_MATVEC(matvec_f16_##isa);  \
    DECLARE_MATVEC(matvec_bf16_##isa); \
    DECLARE_MATMUL(gemm_f32_##isa);    \
    DECLARE_MATMUL(gemm_f16_##isa);    \
    DECLARE_MATMUL(gemm_bf16_##isa)

DECLARE_FLOAT_PRODUCTS(avx2);
DECLARE_FLOAT_PRODUCTS(avx512);
DECLARE_FLOAT_PRODUCTS(neon);

/* The matvec of every type; those of quantised types are static to the file of the table. */
#define MATVECS(isa)                                                                                  \
    {                                                                                                 \
        [TENSOR_F32] = matvec_f32_##isa, [TENSOR_F16] = matvec_f16_##isa,                             \
        [TENSOR_BF16] = matvec_bf16_##isa, [TENSOR_Q4_0] = matvec_q4_0, [TENSOR_Q4_1] = matvec_q4_1,  \
        [TENSOR_Q5_0] = matvec_q5_0, [TENSOR_Q5_1] = matvec_q5_1, [TENSOR_Q8_0] = matvec_q8_0,        \
        [TENSOR_Q4_K] = matvec_q4_k, [TENSOR_Q5_K] = matvec_q5_k, [TENSOR_Q6_K] = matvec_q6_k,        \
    }

#define AMX_LEAST 48 /* rows of a batch, from which on unpacking for tiles pays */
DECLARE_MATMUL(gemm_amx);
void quantize_amx(const struct acts *a, int row);

void quantize_avx2(const struct acts *a, int row);
void rmsnorm_avx2(float *out, const float *x, const float *weight, int n, float eps);
void silu_mul_avx2(float *out, const float *gate, const float *up, int n);
void vec_add_avx2(float *x, const float *y, int n);

void quantize_avx512(const struct acts *a, int row);
void rmsnorm_avx512(float *out, const float *x, const float *weight, int n, float eps);
void silu_mul_avx512(float *out, const float *gate, const float *up, int n);
void vec_add_avx512(float *x, const float *y, int n);

void silu_mul_neon(float *out, const float *gate, const float *up, int n);
