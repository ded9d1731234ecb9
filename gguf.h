/* gguf.h - reading GGUF v2 and v3 checkpoints.
 *
 * The file is memory-mapped and stays where it is (or is copied, on request):
 * tensors and strings are views into the mapping. Every offset, count, string
 * and shape is checked against the file's size before it is used, so that
 * whatever gguf_open() accepts can be read without further checks. This is the
 * only code that sees file bytes. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"

/* Element types of tensors, with the numbers that GGUF files use. */
enum tensor_type {
    TENSOR_F32 = 0,
    TENSOR_F16 = 1,
    TENSOR_Q4_0 = 2,
    TENSOR_Q4_1 = 3,
    TENSOR_Q5_0 = 6,
    TENSOR_Q5_1 = 7,
    TENSOR_Q8_0 = 8,
    TENSOR_Q4_K = 12,
    TENSOR_Q5_K = 13,
    TENSOR_Q6_K = 14,
    TENSOR_BF16 = 30,
};

enum gguf_type {
    GGUF_U8, GGUF_I8, GGUF_U16, GGUF_I16, GGUF_U32, GGUF_I32, GGUF_F32,
    GGUF_BOOL, GGUF_STRING, GGUF_ARRAY, GGUF_U64, GGUF_I64, GGUF_F64,
};

/* Bytes in the file; not NUL-terminated. */
struct gguf_string {
    const char *data;
    size_t len;
};

struct gguf_tensor {
    struct gguf_string name;
    int n_dims;
    int64_t ne[4];        /* GGUF order: ne[0] varies fastest; unused ones are 1 */
    uint32_t type;        /* enum tensor_type, or a type that we can't run */
    uint64_t offset;      /* from the start of the file's data section */
    size_t size;          /* bytes */
    const uint8_t *data;  /* into the mapping */
};

struct gguf_array {
    enum gguf_type type;  /* never GGUF_ARRAY: nested arrays are refused */
    size_t n;
    const uint8_t *data;  /* for strings: step through with gguf_array_next() */
};

/* What a metadata key holds. */
struct gguf_value {
    bool is_array;
    struct gguf_array array; /* a scalar is an array of one element */
};

struct gguf;

/* Where a file's bytes are used. A copy lies in huge pages, from which weights are read faster; it takes the file's
 * size in memory that no other program shares. */
enum gguf_access { GGUF_MAPPED, GGUF_COPIED };

/* Maps or copies the file at `path` (and the other parts where it is the first of a
 * split `-00001-of-0000N` set) and checks its structure. Tensors of a type
 * that we can't run are accepted here (their size is then unchecked and
 * `data` NULL): the model complains when it needs one. NULL on failure. */
struct gguf *gguf_open(const char *path, enum gguf_access how, struct error *err);
void gguf_close(struct gguf *file);

const char *gguf_path(const struct gguf *file);
size_t gguf_bytes(const struct gguf *file); /* size of all parts on disk */

int gguf_n_tensors(const struct gguf *file);
const struct gguf_tensor *gguf_tensor_at(const struct gguf *file, int i);
const struct gguf_tensor *gguf_find_tensor(const struct gguf *file, const char *name);

/* The scalar getters return false, and leave *out alone, where the key is
 * missing or its type doesn't convert without loss. Any integer type serves
 * for gguf_get_int(), any number for gguf_get_float(). */
bool gguf_get_int(const struct gguf *file, const char *key, int64_t *out);
bool gguf_get_float(const struct gguf *file, const char *key, double *out);
bool gguf_get_bool(const struct gguf *file, const char *key, bool *out);
bool gguf_get_string(const struct gguf *file, const char *key, struct gguf_string *out);
bool gguf_get_array(const struct gguf *file, const char *key, struct gguf_array *out);

/* Elements of an array. The index must be below a->n. What doesn't convert
 * (a string; for gguf_array_int() a float or more than INT64_MAX) gives 0; a
 * bool is 0 or 1. gguf_array_next() steps through an array of strings: start
 * with *cursor = a->data and call it at most a->n times. */
int64_t gguf_array_int(const struct gguf_array *a, size_t i);
double gguf_array_float(const struct gguf_array *a, size_t i);
struct gguf_string gguf_array_next(const struct gguf_array *a, const uint8_t **cursor);

/* Metadata in file order, for --inspect: the key, and the value as short text
 * (arrays as their type, length and first elements). */
int gguf_n_keys(const struct gguf *file);
struct gguf_string gguf_key_at(const struct gguf *file, int i);
const struct gguf_value *gguf_value_at(const struct gguf *file, int i);
const struct gguf_value *gguf_find_value(const struct gguf *file, const char *key);
void gguf_value_text(const struct gguf *file, int i, char *buf, size_t size);

/* Writes 'text' into buf, in quotes, as one printable line of UTF-8: escapes
 * for what isn't printable, "..." for what doesn't fit. Returns its length. */
size_t gguf_quote(struct gguf_string text, char *buf, size_t size);

/* Name of a tensor type ("Q4_1"), or "unknown" for a number that GGUF doesn't define. */
const char *tensor_type_name(uint32_t type);

/* Elements and bytes of one block of a type; false for a type that we can't run. */
bool tensor_type_block(uint32_t type, int *elements, size_t *bytes);
