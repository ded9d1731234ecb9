/* arena.h - memory that is large and read from end to end for every token: a layer's keys and values, weights. */
#pragma once

#include <stddef.h>

struct arena {
    void *data;   /* 64-byte aligned, not initialised */
    size_t bytes; /* what it takes of the system */
};

/* At least `bytes` bytes, of huge pages as far as they fill, and up to an eighth more to fill the last: with 4 KB
 * ones, looking up addresses holds up reading ahead. Returns -1 when memory is short. */
int arena_create(struct arena *a, size_t bytes);
void arena_free(struct arena *a);
