/* gguf_internal.h - an open GGUF file, as gguf.c, gguf_bytes.c and gguf_split.c share it. */
#pragma once

#include "arena.h"
#include "gguf.h"

#define GGUF_MAX_ITEMS (1 << 20) /* keys or tensors: far above any model, far below trouble */

struct key {
    struct gguf_string name;
    struct gguf_value value;
};

struct name {
    struct gguf_string text;
    int index;                   /* into keys or tensors */
};

struct gguf {
    char *path;
    const uint8_t *base;         /* the mapping, or the copy */
    size_t size;
    struct arena copy;           /* empty where the file is mapped */
    struct key *keys;
    int n_keys;
    struct gguf_tensor *tensors; /* of all parts */
    int n_tensors;
    struct name *key_names;      /* [n_keys], sorted */
    struct name *tensor_names;   /* [n_tensors], sorted */
    struct gguf **parts;         /* [n_parts]: a split set's second part and on, in their first */
    int n_parts;
};

/* Opens one file, whether or not it's part of a set. */
struct gguf *gguf_open_one(const char *path, enum gguf_access how, struct error *err);

/* Opens the other parts where `first` is the first of a split set. */
int gguf_open_parts(struct gguf *first, enum gguf_access how, struct error *err);

/* Maps or copies the file at file->path: sets base and size. */
int gguf_load_bytes(struct gguf *file, enum gguf_access how, struct error *err);
void gguf_release_bytes(struct gguf *file);

/* Makes tensor_names of tensors; it's an error if two share a name. */
int gguf_index_tensors(struct gguf *file, struct error *err);

/* The path for an error message: its end where it's long. */
const char *gguf_shown_path(const char *path);
