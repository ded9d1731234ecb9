/* prefetch.h - weights on their way from memory before a matrix-vector product gets to them. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define PREFETCH_NEAR 4096  /* bytes ahead at least: the hardware stops at the end of a page */
#define PREFETCH_FAR 16384  /* the same for the second-level cache, which waits for more lines at a time */

struct ahead {
    size_t near, far; /* bytes */
};

/* How far ahead to prefetch where rows of `group` bytes together are read side by side: whole groups, as less would be
 * too late for the last of the rows. */
static inline struct ahead prefetch_ahead(size_t group) {
    return (struct ahead){(PREFETCH_NEAR + group - 1) / group * group, (PREFETCH_FAR + group - 1) / group * group};
}

/* Prefetches `bytes` bytes in the order in which they lie in memory, `ahead` of p. */
static inline __attribute__((always_inline)) void prefetch(const uint8_t *p, int bytes, struct ahead ahead) {
    for (int i = 0; i < bytes; i += 64) {
        __builtin_prefetch(p + ahead.near + i);
        __builtin_prefetch(p + ahead.far + i, 0, 2);
    }
}
