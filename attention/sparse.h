/* sparse.h - small things that moba.c and topk.c share. */
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
