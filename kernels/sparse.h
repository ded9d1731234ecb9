/* sparse.h - finding the keys that matter without reading all of them.
 *
 * Pages, after Quest (Tang et al. 2024): of every PAGE consecutive keys the
 * smallest and the largest value in each channel are kept, from which follows
 * what a query's score against any of them can reach. They are stored in 2 bits
 * relative to the channel's range over a group of PAGE_GROUP pages, that is in
 * about 1/28 of the bytes of f16 keys and values.
 *
 * A true upper bound assumes that one key is extreme in every channel at once,
 * and ranks pages badly because of that. So the box is shrunk around its centre
 * to PAGE_REACH of its size: what no longer is a bound for certain finds more
 * of the best keys in as many pages read. */
#pragma once

#include "kv_row.h"
#include "attend.h"

#define PAGE 4            /* keys */
#define PAGE_GROUP 128    /* pages */
#define PAGE_REACH 0.4f

struct sparse_kernels {
    const char *isa;

    /* How high the scores of m queries q + r * q_stride may reach in each page of a group:
     * reach[r * stride + page]. */
    void (*reach)(int d, const void *group, const float *q, size_t q_stride, int m, float *reach,
                  size_t stride);

    /* How many of x [n] are >= least; the same, with their indices, ascending. */
    int (*count)(const float *x, int n, float least);
    int (*at_least)(const float *x, int n, float least, int *index);
};

const struct sparse_kernels *sparse_select(const char *isa);

/* Summarises the PAGE * PAGE_GROUP keys from entry `begin` on in a group of page_group_bytes(d). */
void page_group_build(const struct attend_kernels *a, const struct kv_view *kv, int begin, void *group);
size_t page_group_bytes(int d);

/* Writes the indices of the k largest of x [n] to best [n], ascending, and returns their number: k, or fewer
 * where there are not as many (a NaN is never one). Of equal values the first wins. spare [n] is
 * overwritten. */
int select_best(const struct sparse_kernels *s, const float *x, int n, int k, int *best, float *spare);

/* A value that probably somewhat more than k of x [n] reach, from a sample; -INFINITY where k is close to n.
 * spare has room for 512 values. */
float guess_least(const struct sparse_kernels *s, const float *x, int n, int k, float *spare);
