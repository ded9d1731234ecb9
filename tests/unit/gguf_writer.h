/* gguf_writer.h - small GGUF files for tests, right or wrong.
 *
 * A writer is a growing buffer; the put_ functions append the file's parts in
 * order, and the test decides what they say:
 *
 *     struct gguf_writer w = {0};
 *     put_header(&w, 3, n_tensors, n_keys);
 *     put_key_u32(&w, "llama.block_count", 2);
 *     put_tensor(&w, "a", 2, (uint64_t[]){32, 4}, TENSOR_F32, 0);
 *     put_padding(&w, 32);
 *     put_zeros(&w, 32 * 4 * 4);
 *     writer_save(&w, path);
 *     writer_free(&w);
 */
#pragma once

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../gguf.h"

struct gguf_writer {
    uint8_t *data;
    size_t len, capacity;
};

/* Appends n bytes, zeros where data is NULL. */
static inline void put_bytes(struct gguf_writer *w, const void *data, size_t n) {
    if (w->len + n > w->capacity) {
        w->capacity = 2 * (w->len + n);
        w->data = realloc(w->data, w->capacity);
        if (!w->data) {
            abort();
        }
    }
    if (data) {
        memcpy(w->data + w->len, data, n);
    } else {
        memset(w->data + w->len, 0, n);
    }
    w->len += n;
}

static inline void put_zeros(struct gguf_writer *w, size_t n) {
    put_bytes(w, NULL, n);
}

static inline void put_padding(struct gguf_writer *w, size_t alignment) {
    put_zeros(w, (alignment - w->len % alignment) % alignment);
}

static inline void put_u32(struct gguf_writer *w, uint32_t value) {
    put_bytes(w, &value, sizeof value);
}

static inline void put_u64(struct gguf_writer *w, uint64_t value) {
    put_bytes(w, &value, sizeof value);
}

static inline void put_string(struct gguf_writer *w, const char *text) {
    put_u64(w, strlen(text));
    put_bytes(w, text, strlen(text));
}

static inline void put_header(struct gguf_writer *w, uint32_t version, uint64_t n_tensors, uint64_t n_keys) {
    put_bytes(w, "GGUF", 4);
    put_u32(w, version);
    put_u64(w, n_tensors);
    put_u64(w, n_keys);
}

/* A key and the type of its value; the value comes next. */
static inline void put_key(struct gguf_writer *w, const char *key, uint32_t type) {
    put_string(w, key);
    put_u32(w, type);
}

static inline void put_key_u32(struct gguf_writer *w, const char *key, uint32_t value) {
    put_key(w, key, GGUF_U32);
    put_u32(w, value);
}

static inline void put_key_f32(struct gguf_writer *w, const char *key, float value) {
    put_key(w, key, GGUF_F32);
    put_bytes(w, &value, sizeof value);
}

static inline void put_key_string(struct gguf_writer *w, const char *key, const char *value) {
    put_key(w, key, GGUF_STRING);
    put_string(w, value);
}

/* A key and the head of an array; its n elements come next. */
static inline void put_key_array(struct gguf_writer *w, const char *key, uint32_t type, uint64_t n) {
    put_key(w, key, GGUF_ARRAY);
    put_u32(w, type);
    put_u64(w, n);
}

static inline void put_tensor(struct gguf_writer *w, const char *name, uint32_t n_dims, const uint64_t *ne,
                              uint32_t type, uint64_t offset) {
    put_string(w, name);
    put_u32(w, n_dims);
    for (uint32_t i = 0; i < n_dims; i++) {
        put_u64(w, ne[i]);
    }
    put_u32(w, type);
    put_u64(w, offset);
}

static inline void writer_save(const struct gguf_writer *w, const char *path) {
    FILE *f = fopen(path, "wb");
    if (!f || (w->len && fwrite(w->data, 1, w->len, f) != w->len) || fclose(f)) {
        perror(path);
        abort();
    }
}

static inline void writer_free(struct gguf_writer *w) {
    free(w->data);
    *w = (struct gguf_writer){0};
}
