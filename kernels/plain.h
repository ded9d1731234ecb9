/* plain.h - the plain C version of every kernel, which the others are tested
 * against and fall back on. */
#pragma once

#include "internal.h"

void plain_quantize(const struct acts *a, int row);
void plain_matmul_quant(const struct weight *w, int begin, int end, const struct acts *a, float *y,
                        size_t y_stride, bool add, void *scratch);
void plain_matmul_float(const struct weight *w, int begin, int end, const struct acts *a, float *y,
                        size_t y_stride, bool add, void *scratch);
void plain_rmsnorm(float *out, const float *x, const float *weight, int n, float eps);
void plain_silu_mul(float *gate, const float *up, int n);
void plain_vec_add(float *x, const float *y, int n);
