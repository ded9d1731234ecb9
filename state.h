/* state.h - saving and restoring what a session holds.
 *
 * Saving and restoring go through the same functions, so that the two can't disagree: a struct state_io
 * either writes the given memory to a file or fills it from one, and keeps a checksum of all that passed. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "error.h"

struct state_io {
    FILE *file;
    bool saving;
    uint64_t checksum;   /* of what passed so far */
    size_t left;         /* restoring: bytes that the file still has */
    bool failed;         /* once set, restoring gives zeros */
};

/* Adds n bytes to a checksum, which begins with 0: FNV-1a of 8-byte words, and of the bytes that are left. */
uint64_t checksum_add(uint64_t checksum, const void *data, size_t n);

/* n bytes to or from the file. */
void state_bytes(struct state_io *io, void *data, size_t n);

/* An integer within [min, max]: one that isn't fails. */
void state_int(struct state_io *io, int *value, int min, int max);

/* Whether n items of a size can still come: check before allocating for them. Always true when saving. */
bool state_has(struct state_io *io, size_t n, size_t size);
