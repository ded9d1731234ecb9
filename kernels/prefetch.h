/* prefetch.h - weights on their way from memory before a matrix-vector product gets to them. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "kernels.h"

#define PREFETCH_NEAR 4096  /* bytes ahead at least: the hardware stops at the end of a page */
#define PREFETCH_FAR 16384  /* the same for the second-level cache, which waits for more lines at a time */

struct ahead {
    size_t near, far; /* bytes */
    const uint8_t *end, *next; /* of what is read side by side, and of what is read then */
};

/* How far ahead to prefetch in rows up to `end`, of which `group` at a time are read side by side: whole groups, as
 * less would be too late for the last of the rows. */
static inline struct ahead prefetch_ahead(const struct weight *w, int end, int group) {
    size_t bytes = (size_t)group * w->row_bytes;
    const uint8_t *last = w->data + (size_t)end * w->row_bytes;
    return (struct ahead){
        .near = (PREFETCH_NEAR + bytes - 1) / bytes * bytes, .far = (PREFETCH_FAR + bytes - 1) / bytes * bytes,
        .end = last, .next = w->next ? w->next : last,
    };
}

/* Prefetches `bytes` bytes in the order in which they are read, `ahead` of p. */
static inline __attribute__((always_inline)) void prefetch(const uint8_t *p, int bytes, struct ahead ahead) {
    const uint8_t *near = p + ahead.near, *far = p + ahead.far;
    if (near >= ahead.end) near = ahead.next + (near - ahead.end);
    if (far >= ahead.end) far = ahead.next + (far - ahead.end);
    for (int i = 0; i < bytes; i += 64) {
        __builtin_prefetch(near + i);
        __builtin_prefetch(far + i, 0, 2);
    }
}
