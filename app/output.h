/* output.h - files that are complete or not there at all. */
#pragma once

#include <stdio.h>

#include "../error.h"

/* A file being written next to its final place. Devices and pipes are written in place. */
struct output {
    FILE *file;
    const char *path;
    char *temporary;     /* NULL when written in place */
};

int output_open(struct output *out, const char *path, struct error *err);
/* Syncs and renames; on failure the temporary file is removed and the old file is as it was. */
int output_commit(struct output *out, struct error *err);
void output_discard(struct output *out);
