/* attend.h - the inner loops that attention modes are built from.
 *
 * Every routine works on the entries of one KV head and on query rows that
 * have already been rotated and multiplied by the softmax scale. A row's
 * attention is kept as an online-softmax state (FlashAttention, Dao et al.
 * 2022): the largest score seen, and relative to it the sum of weights and the
 * weighted sum of values. So a row may attend to its entries in any number of
 * pieces, in any order, by any mixture of the routines below:
 *
 *     attend_init(state, d);
 *     a->range(&kv, 0, 100, rows, m);          contiguous entries, few rows (decode)
 *     a->score_list(&kv, index, n, q, ...);    chosen entries: their scores,
 *     a->list(&kv, index, scores, n, state);     and then their values, one row
 *     a->pack(&kv, begin, n, block);           contiguous entries, many rows (prefill):
 *     a->rows(d, blocks, begin, n, rows, m);     pack 64 at a time, once, then reuse
 *     attend_merge(state, other, d);           pieces computed apart
 *     attend_finish(state, d, out);
 *
 * None of them synchronises or splits work; the caller deals it out to workers
 * in pieces that don't depend on the number of threads. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kv_row.h"

/* One KV head's entries. */
struct kv_view {
    int d;                            /* head size, at most KV_MAX_DIM */
    enum kv_type type_k, type_v;
    size_t k_row_bytes, v_row_bytes;
    const uint8_t *k, *v;             /* rows, entry 0 first */
    const uint8_t *next_k, *next_v;   /* what is read after a range of entries, for prefetching; or NULL */
};

/* State of one query row: floats [ATTEND_STATE(d)], 64-byte aligned. */
#define ATTEND_MAX 0  /* largest score so far, -INFINITY before the first entry */
#define ATTEND_SUM 1  /* sum of exp(score - max) */
#define ATTEND_ACC 16 /* [d] sum of exp(score - max) * value */
#define ATTEND_STATE(d) (ATTEND_ACC + ((d) + 15) / 16 * 16)

/* A query row of a batch. */
struct attend_row {
    const float *q; /* [d] rotated, times the softmax scale */
    float *state;   /* [ATTEND_STATE(d)] */
    int limit;      /* attends to entries below this index only (causality) */
};

#define ATTEND_BLOCK 64 /* entries that pack() takes at a time */

struct attend_kernels {
    const char *isa;

    /* kv_row_store() and kv_row_load(). */
    void (*store)(enum kv_type type, int d, const float *x, uint8_t *row);
    void (*load)(enum kv_type type, int d, const uint8_t *row, float *out);

    /* m rows attend to entries [begin, end). Keys and values are read once per
     * few rows: for decoding, where memory is the limit. */
    void (*range)(const struct kv_view *kv, int begin, int end, const struct attend_row *rows, int m);

    /* One row attends to the n entries that `index` lists, with which it scores as given. */
    void (*list)(const struct kv_view *kv, const int *index, const float *scores, int n, float *state);

    /* scores[r * stride + i] = q_r . k_(begin + i), for m rows q_r = q + r * q_stride. */
    void (*scores)(const struct kv_view *kv, int begin, int end, const float *q, size_t q_stride, int m,
                   float *scores, size_t stride);

    /* The same for the n entries that `index` lists: scores[r * stride + i] = q_r . k_index[i]. */
    void (*score_list)(const struct kv_view *kv, const int *index, int n, const float *q, size_t q_stride,
                       int m, float *scores, size_t stride);

    /* sums += scale * softmax(scores), of n > 0 scores, which are overwritten. */
    void (*add_softmax)(float *scores, int n, float scale, float *sums);

    /* Copies entries [begin, begin + n), n <= ATTEND_BLOCK, to `block`, of block_bytes(d) bytes and 64-byte
     * aligned, in the form that rows() wants. */
    void (*pack)(const struct kv_view *kv, int begin, int n, void *block);
    size_t (*block_bytes)(int d);

    /* m rows attend to the entries [begin, begin + n) that lie packed in consecutive blocks, all of them
     * full but the last. Many rows at a time: for prompts, where arithmetic is the limit. */
    void (*rows)(int d, const void *blocks, int begin, int n, const struct attend_row *rows, int m);
};

/* The table for a kernels_isa(). An exact one computes in float32; the other may use 8- and 16-bit
 * arithmetic (mean relative error of an output about 1e-2). */
const struct attend_kernels *attend_select(const char *isa, bool exact);

void attend_init(float *state, int d);
/* state += other */
void attend_merge(float *state, const float *other, int d);
/* out [d] = the softmax-weighted mean of values; zero where the row attended to nothing. */
void attend_finish(const float *state, int d, float *out);
