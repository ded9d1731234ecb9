/* plain.h - the plain C version of every kernel, which the others are tested
 * against and fall back on. */
#pragma once

#include "simd.h"

void plain_quantize(const struct acts *a, int row);
DECLARE_MATVEC(plain_matvec_quant);
DECLARE_MATVEC(plain_matvec_float);
DECLARE_MATMUL(plain_matmul_quant);
DECLARE_MATMUL(plain_matmul_float);
void plain_rmsnorm(float *out, const float *x, const float *weight, int n, float eps);
void plain_silu_mul(float *out, const float *gate, const float *up, int n);
void plain_vec_add(float *x, const float *y, int n);
