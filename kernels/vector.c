/* vector.c - float32 vectors: dispatch, and the plain C versions. */
#include <math.h>

#include "plain.h"

void rmsnorm(const struct kernels *k, float *out, const float *x, const float *weight, int n, float eps) {
    k->rmsnorm(out, x, weight, n, eps);
}

void silu_mul(const struct kernels *k, float *out, const float *gate, const float *up, int n) {
    k->silu_mul(out, gate, up, n);
}

void vec_add(const struct kernels *k, float *x, const float *y, int n) { k->vec_add(x, y, n); }

void plain_rmsnorm(float *out, const float *x, const float *weight, int n, float eps) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
    float scale = (float)(1 / sqrt(sum / n + (double)eps));
    for (int i = 0; i < n; i++) out[i] = x[i] * scale * weight[i];
}

void plain_silu_mul(float *out, const float *gate, const float *up, int n) {
    for (int i = 0; i < n; i++) out[i] = gate[i] / (1 + expf(-gate[i])) * up[i];
}

void plain_vec_add(float *x, const float *y, int n) {
    for (int i = 0; i < n; i++) x[i] += y[i];
}
