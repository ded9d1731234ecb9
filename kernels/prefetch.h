/* prefetch.h - weights on their way from memory before a matrix-vector product gets to them. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "kernels.h"

/* Every line is asked for twice. The second-level cache waits for more lines at a time than the first, so the first
 * request, far ahead, is for that; of Zen 4 both are, as reads have to wait behind requests for the first level. Zen
 * 5's first level can take both; it drops some of the requests when many are under way, so that the second, not far
 * behind, finds lines that are still missing. */
#define PREFETCH_NEAR 4096  /* bytes ahead at least: the hardware stops at the end of a page */
#define PREFETCH_FAR 16384  /* the same for the first request; Zen 5's comes to more, too */
#define PREFETCH_NEAR_ZEN4 8192
#define PREFETCH_NEAR_ZEN5 12288
#define PREFETCH_BETWEEN_ZEN5 8192

struct ahead {
    size_t near, far; /* bytes */
    bool near_to_first, far_to_first; /* to the first-level cache; else to the second */
    const uint8_t *end, *next; /* of what is read side by side, and of what is read then */
};

/* Of its family, Zen 3 has no AVX-512. */
static inline bool cpu_is_zen4(void) {
#if defined(__x86_64__) || defined(__i386__)
    return __builtin_cpu_is("amdfam19h") && __builtin_cpu_supports("avx512f");
#else
    return false;
#endif
}

/* Or what came after it: compilers don't know those by name yet. AMD's have had AVX-512 from Zen 4 on. */
static inline bool cpu_is_zen5(void) {
#if defined(__x86_64__) || defined(__i386__)
    return __builtin_cpu_is("amd") && __builtin_cpu_supports("avx512f") && !cpu_is_zen4();
#else
    return false;
#endif
}

/* How far ahead to prefetch in rows up to `end`, of which `group` at a time are read side by side: whole groups, as
 * less would be too late for the last of the rows. */
static inline struct ahead prefetch_ahead(const struct weight *w, int end, int group) {
    size_t bytes = (size_t)group * w->row_bytes;
    const uint8_t *last = w->data + (size_t)end * w->row_bytes;
    struct ahead ahead = {.end = last, .next = w->next ? w->next : last};
    ahead.far_to_first = cpu_is_zen5();
    ahead.near_to_first = !cpu_is_zen4();
    if (ahead.far_to_first) {
        size_t groups = (PREFETCH_NEAR_ZEN5 + bytes / 2) / bytes; /* nearest: the first-level cache is small */
        ahead.near = (groups > 0 ? groups : 1) * bytes;
        ahead.far = ahead.near + PREFETCH_BETWEEN_ZEN5;
    } else {
        size_t near = ahead.near_to_first ? PREFETCH_NEAR : PREFETCH_NEAR_ZEN4;
        ahead.near = (near + bytes - 1) / bytes * bytes;
        ahead.far = (PREFETCH_FAR + bytes - 1) / bytes * bytes;
    }
    return ahead;
}

/* Where what is read `bytes` after p lies: from `end` on that is `next`. */
static inline const uint8_t *read_after(const uint8_t *p, size_t bytes, const uint8_t *end, const uint8_t *next) {
    p += bytes;
    return p < end ? p : next + (p - end);
}

/* Prefetches `bytes` bytes at both places. */
static inline __attribute__((always_inline)) void prefetch_at(const uint8_t *near, const uint8_t *far, int bytes,
                                                              struct ahead ahead) {
    for (int i = 0; i < bytes; i += 64) {
        if (ahead.near_to_first) __builtin_prefetch(near + i);
        else __builtin_prefetch(near + i, 0, 2);
        if (ahead.far_to_first) __builtin_prefetch(far + i);
        else __builtin_prefetch(far + i, 0, 2);
    }
}

/* Prefetches `bytes` bytes in the order in which they are read, `ahead` of p. */
static inline __attribute__((always_inline)) void prefetch(const uint8_t *p, int bytes, struct ahead ahead) {
    prefetch_at(read_after(p, ahead.near, ahead.end, ahead.next), read_after(p, ahead.far, ahead.end, ahead.next),
                bytes, ahead);
}
