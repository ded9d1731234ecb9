/* alloc.h - memory for tensors. */
#pragma once

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

/* Zeroed, 64-byte aligned (a cache line, a vector register); release with free(). NULL when memory is short. */
static inline void *alloc_zeroed(size_t bytes) {
    size_t rounded = (bytes + 63) / 64 * 64;
    void *p = aligned_alloc(64, rounded ? rounded : 64);
    if (p) memset(p, 0, rounded);
    return p;
}
