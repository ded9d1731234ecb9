/* output.h - files that are complete or not there at all. */
#pragma once

#include <stdio.h>

#include "../error.h"

/* A file being written next to its final place, which is where links lead to. Devices and pipes are written in place,
 * and so is what standard output or error goes to. */
struct output {
    FILE *file;
    const char *path;
    char *target, *temporary; /* NULL when written in place */
};

/* Whether there is a place for such a file, before the work that it is for; nothing is written. */
int output_check(const char *path, struct error *err);

int output_open(struct output *out, const char *path, struct error *err);
/* Syncs and renames; on failure the temporary file is removed and the old file is as it was. */
int output_commit(struct output *out, struct error *err);
void output_discard(struct output *out);
/* Removes the temporary files of all that are open, before the program ends at once: for signal handlers. */
void output_abandon(void);
