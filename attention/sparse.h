/* sparse.h - what moba.c and topk.c share. */
#pragma once

#include "attention.h"

/* Index of the first of n ascending values that is at least x; n if none is. */
static inline int first_at(const int *values, int n, int x) {
    int begin = 0, end = n;
    while (begin < end) {
        int middle = begin + (end - begin) / 2;
        if (values[middle] < x) begin = middle + 1;
        else end = middle;
    }
    return begin;
}

/* Query heads per KV head. */
static inline int group_size(const struct attn_layer *layer) {
    return layer->shape->n_head / layer->shape->n_head_kv;
}

static inline const float *query(const struct attn_layer *layer, const struct attn_batch *b, int token,
                                 int head) {
    const struct attn_shape *s = layer->shape;
    return b->q + ((size_t)token * (size_t)s->n_head + (size_t)head) * (size_t)s->head_dim;
}

/* Lays out scratch memory: the next so many bytes of *at, which stays aligned. */
static inline void *take(uintptr_t *at, size_t bytes) {
    void *p = (void *)*at;
    *at += (bytes + 63) / 64 * 64;
    return p;
}

/* How rows compare with dense attention, summed over those that a worker has measured. */
struct measure {
    double rows, recall, mass;
    char padding[40]; /* to a cache line */
};

/* What share of dense attention's probability is that of the entries that a row attended to: it then has
 * this state. Leaves the scores of entries [0, limit) in scores. */
double mass_kept(const struct attn_layer *layer, int g, const float *q, int limit, const float *state,
                 float *scores);

/* Adds the measures of n workers. */
void measures_add(const struct measure *measures, int n, struct attn_stats *stats);
