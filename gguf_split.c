/* gguf_split.c - split sets: NAME-00001-of-00003.gguf and so on, with the
 * metadata in the first part and tensors in all of them. */
#include "gguf_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_PARTS 99999          /* what the names can count */
#define PART_FORMAT "-%05d-of-%05d.gguf"
#define PART_BYTES 20            /* of that suffix */

/* Whether the path is that of part `number` of `count`. */
static bool is_part_path(const char *path, int number, int count) {
    char suffix[40];
    size_t len = strlen(path);
    snprintf(suffix, sizeof suffix, PART_FORMAT, number, count);
    return len >= PART_BYTES && strcmp(path + len - PART_BYTES, suffix) == 0;
}

/* Turns one part's path into another's. */
static void set_part_number(char *path, int number, int count) {
    char suffix[40];
    snprintf(suffix, sizeof suffix, PART_FORMAT, number, count);
    memcpy(path + strlen(path) - PART_BYTES, suffix, PART_BYTES);
}

/* Appends a part's tensors to those of the first part. */
static int append_tensors(struct gguf *first, const struct gguf *part, struct error *err) {
    int n = first->n_tensors + part->n_tensors;
    if (n > GGUF_MAX_ITEMS) {
        return fail(err, "%s: more than %d tensors in all parts", gguf_shown_path(part->path),
                    GGUF_MAX_ITEMS);
    }
    struct gguf_tensor *tensors = realloc(first->tensors, ((size_t)n + 1) * sizeof *tensors);
    if (!tensors) {
        return fail(err, "%s: out of memory for %d tensors", gguf_shown_path(part->path), n);
    }
    first->tensors = tensors;
    memcpy(tensors + first->n_tensors, part->tensors, (size_t)part->n_tensors * sizeof *tensors);
    first->n_tensors = n;
    return 0;
}

/* Opens part `number` (from 1) of `count` and adds it to the first. */
static int add_part(struct gguf *first, const char *path, enum gguf_access how, int number, int count,
                    struct error *err) {
    const char *shown = gguf_shown_path(path);
    int64_t index = -1, n = -1;
    if (access(path, F_OK) != 0) {
        return fail(err, "%s: part %d of %d is missing: put all parts into one directory", shown, number,
                    count);
    }
    struct gguf *part = gguf_open_one(path, how, err);
    if (!part) {
        return -1;
    }
    first->parts[first->n_parts++] = part;
    gguf_get_int(part, "split.no", &index);
    gguf_get_int(part, "split.count", &n);
    if (index != number - 1 || n != count) {
        return fail(err, "%s: split.no is %" PRId64 " and split.count %" PRId64 ", but %d and %d belong to "
                    "a part of this name: fetch it again", shown, index, n, number - 1, count);
    }
    return append_tensors(first, part, err);
}

/* Opens parts 2 to `count` and makes one table of all tensors. */
static int add_parts(struct gguf *first, char *path, enum gguf_access how, int count, struct error *err) {
    const char *shown = gguf_shown_path(first->path);
    first->parts = calloc((size_t)count, sizeof *first->parts);
    if (!first->parts) {
        return fail(err, "%s: out of memory for %d parts", shown, count);
    }
    for (int i = 2; i <= count; i++) {
        set_part_number(path, i, count);
        if (add_part(first, path, how, i, count, err)) {
            return -1;
        }
    }
    int64_t expected = first->n_tensors;
    gguf_get_int(first, "split.tensors.count", &expected);
    if (expected != first->n_tensors) {
        return fail(err, "%s: split.tensors.count is %" PRId64 ", but the parts hold %d tensors: fetch all "
                    "of them again", shown, expected, first->n_tensors);
    }
    return gguf_index_tensors(first, err);
}

int gguf_open_parts(struct gguf *first, enum gguf_access how, struct error *err) {
    const char *shown = gguf_shown_path(first->path);
    int64_t index = 0, count = 1;
    gguf_get_int(first, "split.no", &index);
    gguf_get_int(first, "split.count", &count);
    if (count < 0 || count > MAX_PARTS || index < 0 || (index > 0 && index >= count)) {
        return fail(err, "%s: split.no is %" PRId64 " and split.count %" PRId64 ": the file is damaged, "
                    "fetch it again", shown, index, count);
    }
    if (count <= 1) {
        return 0;
    }
    int number = (int)index + 1;
    if (!is_part_path(first->path, number, (int)count)) {
        return fail(err, "%s: part %d of a split set, but its name doesn't end in " PART_FORMAT ": give all "
                    "parts their names back", shown, number, number, (int)count);
    }
    char *path = strdup(first->path);
    if (!path) {
        return fail(err, "%s: out of memory", shown);
    }
    int status = -1;
    if (number == 1) {
        status = add_parts(first, path, how, (int)count, err);
    } else {
        set_part_number(path, 1, (int)count);
        fail(err, "%s: part %d of %d of a split set: open the first instead, %s", shown, number, (int)count,
             gguf_shown_path(path));
    }
    free(path);
    return status;
}
