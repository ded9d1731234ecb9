#include "internal.h"

void acts_residual(const struct kernels *k, const struct acts *a, int row, void *q8, float *out) {
    const float *x = a->f32 + (size_t)row * (size_t)a->cols;
    struct acts one = {.n = 1, .cols = a->cols, .f32 = x, .q8 = q8};
    if (a->n == 1) k->quantize(&one, 0); /* which matmul() does for itself */
    struct act_view v = a->n == 1 ? act_view(&one) : act_row(a, row);
    for (int c = 0; c < a->cols; c++) out[c] = x[c] - v.scale[c / ACT_BLOCK] * v.q[c];
}
