/* kernels.h - the arithmetic, in one plain C version and one per instruction set.
 *
 * kernels_select() picks a table once at start; nothing else asks what CPU
 * this is. Everything here that takes a `struct worker` is called by all
 * workers of a team at once and splits the work between them; unless its
 * comment says otherwise it does NOT end with a barrier.
 *
 * Whatever the number of threads, a result is computed by the same operations
 * in the same order. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../error.h"
#include "../gguf.h"
#include "team.h"

/* A matrix as it lies in the file: y[rows] = W[rows, cols] x[cols]. Vectors
 * (norms, biases) have one row. A weight that the checkpoint doesn't have is
 * all zero (data == NULL). */
struct weight {
    enum tensor_type type;
    int rows, cols;
    size_t row_bytes;
    const uint8_t *data;
    const uint8_t *next;     /* what is read after these rows, for prefetching; NULL: what lies behind them */
    const struct lora *lora; /* an adapter's update (model.h), which the caller of matmul() adds; or NULL */
};

/* Quantised activations: 8-bit values in blocks of 32 along a row, or bfloat16. What the
 * fields are is the business of kernels/; callers only own the memory. */
struct acts {
    int n, cols;         /* rows (tokens), columns */
    const float *f32;    /* [n, cols] */
    void *q8;            /* acts_bytes(k, n, cols) bytes, 64-byte aligned */
    bool precise;        /* products as if with 16 bits, if acts_heed_precise() */
};

/* Whether weights of this type are multiplied with rounded activations. */
bool is_quantised(enum tensor_type type);

struct kernels; /* defined in kernels/internal.h; one const table per ISA */

/* The fastest table this CPU (and kernel) can run, or the one named: "c", "avx2",
 * "avx512", "avx512vnni", "amx", "neon", "neondot". `isa` may be NULL.
 * NULL with an error for a name that is unknown or can't run here. */
const struct kernels *kernels_select(const char *isa, struct error *err);
const char *kernels_isa(const struct kernels *k);

/* ---- matrix products (matmul.c) ------------------------------------------ */

size_t acts_bytes(const struct kernels *k, int n, int cols);
bool acts_heed_precise(const struct kernels *k, int n); /* with up to 16 bits; else acts_residual() is the way */

/* Prepares a->q8 from a->f32 for products with weights of quantised types (F32,
 * F16 and BF16 weights use a->f32 as it is). All workers call it once a->f32 is
 * complete; it ends with a barrier where one is needed, so products may follow at
 * once. (For n == 1 every worker does it on its own, in matmul().) */
void acts_prepare(struct worker *w, const struct kernels *k, const struct acts *a);

/* Prepares one of several rows, for who has just computed it and has it in the cache; a barrier must follow. */
void acts_prepare_row(const struct kernels *k, const struct acts *a, int row);

/* What 8 bits leave out of a prepared row: out [cols] = row - its quantised form. Products of it, added to those of
 * the row, are as good as with 16 bits. q8 is acts_bytes(k, 1, cols) of scratch. cols is a multiple of 32. */
void acts_residual(const struct kernels *k, const struct acts *a, int row, void *q8, float *out);

struct product {
    const struct weight *w; /* [rows, cols] */
    float *y;               /* [n, y_stride]: row i gets W a_i */
    size_t y_stride;        /* floats from row to row, >= w->rows */
    bool add;               /* add to y instead of overwriting it */
    bool coarse;            /* 8 bits will do, even where the activations are precise */
    const struct weight *gate; /* of w's shape and type, or NULL: row i gets silu(gate a_i) * (W a_i) (SwiGLU) */
};

/* Several products with the same activations, such as q, k and v, in one
 * pass over the workers. n == 1 is a matrix-vector product that streams the
 * weights once; large n goes through a register-blocked GEMM. `scratch` is
 * matmul_scratch_bytes() of at least these rows and columns per worker, 64-byte
 * aligned. All workers call it, with a barrier between it and other products or
 * loops over team_next(). */
void matmul(struct worker *w, const struct kernels *k, const struct product *products, int n_products,
            const struct acts *a, void *scratch);
/* Announces the n weights, all with the same activations, that are multiplied with a single row after the products that
 * come next: a worker prefetches its part of them at the end of its part of those, and while it waits at barriers.
 * n == 0: nothing is known. */
void matmul_expect(struct worker *w, const struct weight *const *weights, int n);
size_t matmul_scratch_bytes(int max_rows, int max_cols); /* of one worker, for activations of that size */

/* Row r of a weight of any type as float32: embedding look-ups, tests. */
void weight_row(const struct kernels *k, const struct weight *w, int64_t row, float *out);

/* ---- float32 vectors (vector.c) ------------------------------------------- */

/* out = x / rms(x) * weight; out may be x. */
void rmsnorm(const struct kernels *k, float *out, const float *x, const float *weight, int n, float eps);
/* out = silu(gate) * up; out may be one of the two. */
void silu_mul(const struct kernels *k, float *out, const float *gate, const float *up, int n);
/* x += y */
void vec_add(const struct kernels *k, float *x, const float *y, int n);

uint16_t f32_to_f16(float x);   /* round to nearest even */
float f16_to_f32(uint16_t h);
float bf16_to_f32(uint16_t h);

/* ---- RoPE (rope.c) ----------------------------------------------------------- */

#define ROPE_MAX_PAIRS 256

enum rope_scaling { ROPE_SCALE_NONE, ROPE_SCALE_LINEAR, ROPE_SCALE_YARN, ROPE_SCALE_LLAMA3 };

struct rope {
    int n_pairs;                    /* rotated dimensions / 2; the rest of a head passes through */
    bool interleaved;               /* pairs are (2i, 2i+1) as in GGUF "llama", else (i, i + n_pairs) */
    float inv_freq[ROPE_MAX_PAIRS]; /* radians per position, scaling applied */
    float magnitude;                /* multiplies cos and sin (YaRN's attention factor), else 1 */
};

/* cos and sin of every pair at one position: table[2*i] = cos, table[2*i+1] = sin. */
void rope_table(const struct rope *rope, int64_t pos, float *table);
/* Rotates one head vector in place. */
void rope_rotate(const struct rope *rope, const float *table, float *head);
