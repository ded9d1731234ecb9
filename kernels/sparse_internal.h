/* sparse_internal.h - what the versions of sparse.h share. */
#pragma once

#include <math.h>
#include <string.h>

#include "sparse.h"

/* The tables; those of other instruction sets than the target's don't exist. */
extern const struct sparse_kernels sparse_c, sparse_avx2, sparse_avx512, sparse_avx512vnni, sparse_neon;

#define PAGE_LANES 16
#define PAGE_CODES 3 /* the largest code */

/* A group of pages. Channels are padded to a multiple of PAGE_LANES, the padding being all zero:
 *
 *     uint8_t codes[PAGE_GROUP / PAGE_LANES][width / 8][PAGE_LANES][4]
 *     float base[width], step[width]
 *
 * From its lowest bits on, a byte has the codes of a page's smallest and largest key in channel 8 i + j, then
 * those in channel 8 i + 4 + j. A code stands for base + step * code. */
struct page_group {
    int width;
    const uint8_t *codes;
    const float *base, *step;
};

static inline int page_width(int d) { return (d + PAGE_LANES - 1) / PAGE_LANES * PAGE_LANES; }

static inline struct page_group page_group(int d, const void *group) {
    struct page_group g = {.width = page_width(d), .codes = group};
    g.base = (const float *)(const void *)(g.codes + (size_t)g.width * PAGE_GROUP / 2);
    g.step = g.base + g.width;
    return g;
}
