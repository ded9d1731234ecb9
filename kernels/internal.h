/* internal.h - what the files of kernels/ share; nothing else includes it. */
#pragma once

#include "kernels.h"

#define PANEL 32        /* weight rows that the GEMM takes at a time */
#define ACT_BLOCK 32    /* activations that share a scale */
#define TENSOR_TYPES 31 /* one more than the largest enum tensor_type */
#define MAX_BLOCK 256   /* elements in the largest quantised block */

/* y[r] (+)= W[r] . a_row for r in [begin, end), reading the weights where they
 * lie. */
typedef void (*matvec_fn)(const struct weight *w, int begin, int end, const struct acts *a, int row, float *y,
                          bool add, void *scratch);

/* y[i][r] (+)= W[r] . a_i for r in [begin, end), at most PANEL of them, and every
 * row i of the activations. `y` points at row 0, column 0. */
typedef void (*matmul_fn)(const struct weight *w, int begin, int end, const struct acts *a, float *y,
                          size_t y_stride, bool add, void *scratch);

struct kernels {
    const char *isa;
    int max_few;     /* up to so many rows matvec is faster than matmul */
    int tiles_from;  /* so many rows or more go through `tiles` if the weights are quantised; 0: none do */
    matmul_fn tiles; /* heeds acts->precise */
    matvec_fn matvec[TENSOR_TYPES];
    matmul_fn matmul[TENSOR_TYPES];
    void (*quantize)(const struct acts *a, int row);
    void (*rmsnorm)(float *out, const float *x, const float *weight, int n, float eps);
    void (*silu_mul)(float *out, const float *gate, const float *up, int n);
    void (*vec_add)(float *x, const float *y, int n);
};

/* The tables. Those of other instruction sets than the target's don't exist;
 * each fills its gaps with the functions of a lesser one. */
extern const struct kernels kernels_c, kernels_avx2, kernels_avx512, kernels_avx512vnni, kernels_amx,
    kernels_neon, kernels_neondot;

/* ---- quantised activations ---------------------------------------------------
 *
 * A row x is cut into blocks of 32; x[j] ~ scale * q[j], |q| <= 127. Weights are
 * used as w = d*(u - zero) + m with unsigned u (see quants.h), so a block of a
 * dot product is
 *
 *     d * scale * (sum(u*q) - zero * sum(q))  +  m * scale * sum(q)
 *
 * of which everything that doesn't depend on the weight is kept per block; the
 * term with zero is kept for 128, of which the others are exact fractions. Rows
 * are filled up with zeros to a multiple of four blocks. */
struct act_view {
    int blocks;           /* in a row, a multiple of 4 */
    size_t q_stride;      /* bytes from row to row: 32 * blocks */
    int8_t *q;            /* [n, q_stride] */
    float *scale;         /* [n, blocks] */
    float *scaled_sum;    /* [n, blocks] scale * sum(q) */
    int32_t *offset;      /* [n, blocks] -128 * sum(q) */
    int32_t *half_offset; /* [n, blocks, 2] of the first and the second 16 */
};

struct act_view act_view(const struct acts *a);

/* The same for one row alone. */
static inline struct act_view act_row(const struct acts *a, int row) {
    struct act_view v = act_view(a);
    size_t first = (size_t)row * (size_t)v.blocks;
    v.q += (size_t)row * v.q_stride;
    v.scale += first;
    v.scaled_sum += first;
    v.offset += first;
    v.half_offset += 2 * first;
    return v;
}

static inline void act_set(const struct act_view *v, size_t block, float scale, int sum0, int sum1) {
    v->scale[block] = scale;
    v->scaled_sum[block] = scale * (float)(sum0 + sum1);
    v->offset[block] = -128 * (sum0 + sum1);
    v->half_offset[2 * block] = -128 * sum0;
    v->half_offset[2 * block + 1] = -128 * sum1;
}
