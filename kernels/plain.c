/* plain.c - matrix products and activation quantisation in plain C. */
#include "plain.h"

#include <math.h>

#include "quants.h"

void plain_quantize(const struct acts *a, int row) {
    struct act_view v = act_view(a);
    const float *x = a->f32 + (size_t)row * (size_t)a->cols;
    int8_t *q = v.q + (size_t)row * v.q_stride;
    size_t first = (size_t)row * (size_t)v.blocks;
    int blocks = a->cols / ACT_BLOCK;
    memset(q, 0, v.q_stride);
    for (int b = blocks; b < v.blocks; b++) act_set(&v, first + (size_t)b, 0, 0, 0);
    for (int b = 0; b < blocks; b++, x += ACT_BLOCK, q += ACT_BLOCK) {
        float max = 0;
        for (int i = 0; i < ACT_BLOCK; i++) max = fmaxf(max, fabsf(x[i]));
        float scale = max / 127, inverse = max > 0 ? 127 / max : 0;
        int32_t half[2] = {0, 0};
        for (int i = 0; i < ACT_BLOCK; i++) {
            q[i] = (int8_t)lrintf(x[i] * inverse);
            half[i / 16] += q[i];
        }
        act_set(&v, first + (size_t)b, scale, half[0], half[1]);
    }
}

/* A weight row, unpacked: u[cols], then d and m of every group. */
struct unpacked {
    uint8_t *u;
    float *d, *m;
};

static struct unpacked unpack_row(const struct quant_format *f, const struct weight *w, int row,
                                  void *scratch) {
    size_t cols = (size_t)w->cols, groups = cols / (size_t)f->group;
    struct unpacked r = {.d = scratch};
    r.m = r.d + groups;
    r.u = (uint8_t *)(r.m + groups);
    f->unpack(w->data + (size_t)row * w->row_bytes, w->cols / f->block, r.u, r.d, r.m, 1);
    return r;
}

static float dot_quant(const struct quant_format *f, const struct unpacked *r, int groups,
                       const struct act_view *x) {
    const int32_t *offset = f->group == 16 ? x->half_offset : x->offset;
    float total = 0;
    for (int g = 0; g < groups; g++) {
        int32_t dot = offset[g] / 128 * f->zero;
        for (int i = g * f->group; i < (g + 1) * f->group; i++) dot += r->u[i] * x->q[i];
        total += r->d[g] * x->scale[g * f->group / ACT_BLOCK] * (float)dot;
        if (f->has_min) total += r->m[g] * x->scaled_sum[g];
    }
    return total;
}

/* In eight partial sums, which keeps the rounding error of long rows small. */
static float dot_float(const float *a, const float *b, int n) {
    float sums[8] = {0};
    int i = 0;
    for (; i + 8 <= n; i += 8)
        for (int j = 0; j < 8; j++) sums[j] += a[i + j] * b[i + j];
    for (; i < n; i++) sums[i % 8] += a[i] * b[i];
    return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

static void put(float *y, float value, bool add) { *y = add ? *y + value : value; }

void plain_matvec_quant(const struct weight *w, int begin, int end, const struct acts *a, int row, float *y,
                        bool add, void *scratch) {
    const struct quant_format *f = quant_format(w->type);
    struct act_view x = act_row(a, row);
    for (int r = begin; r < end; r++) {
        struct unpacked weights = unpack_row(f, w, r, scratch);
        put(&y[r], dot_quant(f, &weights, w->cols / f->group, &x), add);
    }
}

void plain_matmul_quant(const struct weight *w, int begin, int end, const struct acts *a, float *y,
                        size_t y_stride, bool add, void *scratch) {
    const struct quant_format *f = quant_format(w->type);
    for (int r = begin; r < end; r++) {
        struct unpacked weights = unpack_row(f, w, r, scratch);
        for (int i = 0; i < a->n; i++) {
            struct act_view x = act_row(a, i);
            put(&y[(size_t)i * y_stride + (size_t)r], dot_quant(f, &weights, w->cols / f->group, &x), add);
        }
    }
}

void plain_matvec_float(const struct weight *w, int begin, int end, const struct acts *a, int row, float *y,
                        bool add, void *scratch) {
    float *weights = scratch;
    for (int r = begin; r < end; r++) {
        weight_row(&kernels_c, w, r, weights);
        put(&y[r], dot_float(weights, a->f32 + (size_t)row * (size_t)a->cols, a->cols), add);
    }
}

void plain_matmul_float(const struct weight *w, int begin, int end, const struct acts *a, float *y,
                        size_t y_stride, bool add, void *scratch) {
    float *weights = scratch;
    for (int r = begin; r < end; r++) {
        weight_row(&kernels_c, w, r, weights);
        for (int i = 0; i < a->n; i++) {
            float dot = dot_float(weights, a->f32 + (size_t)i * (size_t)a->cols, a->cols);
            put(&y[(size_t)i * y_stride + (size_t)r], dot, add);
        }
    }
}

#define EVERY_TYPE(quant, single)                                                                    \
    {                                                                                                \
        [TENSOR_F32] = single, [TENSOR_F16] = single, [TENSOR_BF16] = single, [TENSOR_Q4_0] = quant, \
        [TENSOR_Q4_1] = quant, [TENSOR_Q5_0] = quant, [TENSOR_Q5_1] = quant, [TENSOR_Q8_0] = quant,  \
        [TENSOR_Q4_K] = quant, [TENSOR_Q5_K] = quant, [TENSOR_Q6_K] = quant,                         \
    }

const struct kernels kernels_c = {
    .isa = "c",
    .max_few = 1,
    .matvec = EVERY_TYPE(plain_matvec_quant, plain_matvec_float),
    .matmul = EVERY_TYPE(plain_matmul_quant, plain_matmul_float),
    .quantize = plain_quantize,
    .rmsnorm = plain_rmsnorm,
    .silu_mul = plain_silu_mul,
    .vec_add = plain_vec_add,
};
