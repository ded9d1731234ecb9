#include "internal.h"

void acts_residual(const struct kernels *k, const struct acts *a, int row, void *q8, float *out) {
    struct acts one = {.n = 1, .cols = a->cols, .f32 = a->f32 + (size_t)row * (size_t)a->cols, .q8 = q8};
    k->quantize(&one, 0);
    struct act_view v = act_view(&one);
    for (int c = 0; c < a->cols; c++) out[c] = one.f32[c] - v.scale[c / ACT_BLOCK] * v.q[c];
}
