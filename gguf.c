/* gguf.c - reading GGUF v2 and v3 checkpoints.
 *
 * A file is little-endian, and packed up to the padding:
 *
 *     "GGUF", u32 version, u64 n_tensors, u64 n_keys
 *     n_keys times:    string key, u32 type, value
 *     n_tensors times: string name, u32 n_dims, u64 ne[n_dims], u32 type, u64 offset
 *     padding to a multiple of general.alignment (32 by default)
 *     the tensors' data; an offset counts from here
 *
 * A string is a u64 length and the bytes; an array is a u32 element type, a
 * u64 count and the elements. From docs/gguf.md of the ggml project. */
#include "gguf_internal.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "GGUF files are used in place: this needs a little-endian machine"
#endif

#define MAX_NAME_BYTES 65535     /* of a key or a tensor */
#define MAX_ALIGNMENT (1 << 20)
#define DEFAULT_ALIGNMENT 32

const char *gguf_shown_path(const char *path) {
    size_t len = strlen(path);
    return len > 200 ? path + len - 200 : path;
}

/* A cursor over the mapped file that never leaves it. */

struct reader {
    const char *path;            /* as shown in errors */
    const uint8_t *base;
    size_t size, pos;
    char item[100];              /* what is being read: "key 'general.name'" */
    struct error *err;
};

/* fail() with what is wrong with the item that is being read. */
#if defined(__GNUC__)
__attribute__((format(printf, 2, 3)))
#endif
static int damaged(const struct reader *r, const char *format, ...) {
    char problem[200];
    va_list args;
    va_start(args, format);
    vsnprintf(problem, sizeof problem, format, args);
    va_end(args);
    return fail(r->err, "%s: %s %s: the file is incomplete or damaged, fetch it again", r->path, r->item,
                problem);
}

static void set_item_name(struct reader *r, const char *kind, struct gguf_string name) {
    int len = snprintf(r->item, sizeof r->item, "%s ", kind);
    gguf_quote(name, r->item + len, sizeof r->item - (size_t)len);
}

static uint64_t multiply_saturating(uint64_t a, uint64_t b) {
    return b && a > UINT64_MAX / b ? UINT64_MAX : a * b;
}

static uint64_t add_saturating(uint64_t a, uint64_t b) {
    return a > UINT64_MAX - b ? UINT64_MAX : a + b;
}

/* Steps over n items of `each` bytes; NULL where the file ends first. */
static const uint8_t *take(struct reader *r, uint64_t n, size_t each) {
    if (n > (r->size - r->pos) / each) {
        damaged(r, "needs %" PRIu64 " bytes at byte %zu, but the file ends at byte %zu",
                multiply_saturating(n, each), r->pos, r->size);
        return NULL;
    }
    const uint8_t *bytes = r->base + r->pos;
    r->pos += (size_t)n * each;
    return bytes;
}

static int read_number(struct reader *r, void *out, size_t bytes) {
    const uint8_t *data = take(r, 1, bytes);
    if (!data) {
        return -1;
    }
    memcpy(out, data, bytes);
    return 0;
}

static int read_string(struct reader *r, struct gguf_string *out) {
    uint64_t len;
    if (read_number(r, &len, sizeof len)) {
        return -1;
    }
    const uint8_t *bytes = take(r, len, 1);
    if (!bytes) {
        return -1;
    }
    *out = (struct gguf_string){(const char *)bytes, (size_t)len};
    return 0;
}

/* The name of the next key or tensor (`number` counts from 1), which errors mention from here on. */
static int read_name(struct reader *r, const char *kind, int number, struct gguf_string *out) {
    snprintf(r->item, sizeof r->item, "%s number %d", kind, number);
    size_t start = r->pos;
    if (read_string(r, out)) {
        return -1;
    }
    if (out->len == 0 || out->len > MAX_NAME_BYTES) {
        return damaged(r, "has a name of %zu bytes at byte %zu", out->len, start);
    }
    set_item_name(r, kind, *out);
    return 0;
}

/* Metadata. */

static const size_t element_bytes[] = {
    [GGUF_U8] = 1,  [GGUF_I8] = 1,  [GGUF_U16] = 2, [GGUF_I16] = 2, [GGUF_U32] = 4, [GGUF_I32] = 4,
    [GGUF_U64] = 8, [GGUF_I64] = 8, [GGUF_F32] = 4, [GGUF_F64] = 8, [GGUF_BOOL] = 1,
};

static int read_value(struct reader *r, struct gguf_value *value) {
    size_t start = r->pos;
    uint32_t type;
    uint64_t n = 1;
    if (read_number(r, &type, sizeof type)) {
        return -1;
    }
    value->is_array = type == GGUF_ARRAY;
    if (value->is_array && (read_number(r, &type, sizeof type) || read_number(r, &n, sizeof n))) {
        return -1;
    }
    if (type == GGUF_ARRAY) {
        return fail(r->err, "%s: %s at byte %zu is an array of arrays, which isn't supported: remove the key",
                    r->path, r->item, start);
    }
    if (type > GGUF_F64) {
        return damaged(r, "has the unknown value type %" PRIu32 " at byte %zu", type, start);
    }
    value->array = (struct gguf_array){(enum gguf_type)type, (size_t)n, r->base + r->pos};
    if (type != GGUF_STRING) {
        return take(r, n, element_bytes[type]) ? 0 : -1;
    }
    for (uint64_t i = 0; i < n; i++) {
        struct gguf_string element;
        if (read_string(r, &element)) {
            return -1;
        }
    }
    return 0;
}

static int read_keys(struct gguf *file, struct reader *r) {
    for (int i = 0; i < file->n_keys; i++) {
        if (read_name(r, "key", i + 1, &file->keys[i].name) || read_value(r, &file->keys[i].value)) {
            return -1;
        }
    }
    return 0;
}

/* Names, sorted for look-up. */

static int compare_strings(struct gguf_string a, struct gguf_string b) {
    if (a.len != b.len) {
        return a.len < b.len ? -1 : 1;
    }
    return memcmp(a.data, b.data, a.len);
}

static int compare_names(const void *a, const void *b) {
    return compare_strings(((const struct name *)a)->text, ((const struct name *)b)->text);
}

/* Sorts names[n]; it's an error if two are the same. */
static int sort_names(struct name *names, int n, const char *kind, const char *path, struct error *err) {
    qsort(names, (size_t)n, sizeof *names, compare_names);
    for (int i = 1; i < n; i++) {
        if (compare_strings(names[i - 1].text, names[i].text) == 0) {
            struct reader r = {.path = gguf_shown_path(path), .err = err};
            set_item_name(&r, kind, names[i].text);
            return damaged(&r, "occurs twice");
        }
    }
    return 0;
}

static int index_keys(struct gguf *file, struct error *err) {
    for (int i = 0; i < file->n_keys; i++) {
        file->key_names[i] = (struct name){file->keys[i].name, i};
    }
    return sort_names(file->key_names, file->n_keys, "key", file->path, err);
}

int gguf_index_tensors(struct gguf *file, struct error *err) {
    free(file->tensor_names);
    file->tensor_names = calloc((size_t)file->n_tensors + 1, sizeof *file->tensor_names);
    if (!file->tensor_names) {
        return fail(err, "%s: out of memory for %d tensors", gguf_shown_path(file->path), file->n_tensors);
    }
    for (int i = 0; i < file->n_tensors; i++) {
        file->tensor_names[i] = (struct name){file->tensors[i].name, i};
    }
    return sort_names(file->tensor_names, file->n_tensors, "tensor", file->path, err);
}

/* Index of a name, or -1. */
static int find_name(const struct name *names, int n, const char *text) {
    struct name wanted = {{text, strlen(text)}, 0};
    const struct name *found = n ? bsearch(&wanted, names, (size_t)n, sizeof *names, compare_names) : NULL;
    return found ? found->index : -1;
}

/* Tensors. */

/* Reads n_dims and ne; the product of ne fits an int64_t. */
static int read_shape(struct reader *r, struct gguf_tensor *tensor) {
    uint32_t n_dims;
    if (read_number(r, &n_dims, sizeof n_dims)) {
        return -1;
    }
    if (n_dims > 4) {
        return damaged(r, "has %" PRIu32 " dimensions where 4 are the limit", n_dims);
    }
    uint64_t total = 1;
    for (uint32_t i = 0; i < 4; i++) {
        uint64_t ne = 1;
        if (i < n_dims && read_number(r, &ne, sizeof ne)) {
            return -1;
        }
        total = multiply_saturating(total, ne);
        if (ne == 0 || total > INT64_MAX) {
            return damaged(r, "has the impossible size %" PRIu64 " in dimension %" PRIu32, ne, i);
        }
        tensor->ne[i] = (int64_t)ne;
    }
    tensor->n_dims = n_dims ? (int)n_dims : 1; /* a scalar is a vector of one */
    return 0;
}

/* Everything about a tensor but where its data is. */
static int read_tensor(struct reader *r, int number, uint64_t alignment, struct gguf_tensor *tensor) {
    if (read_name(r, "tensor", number, &tensor->name) || read_shape(r, tensor) ||
        read_number(r, &tensor->type, sizeof tensor->type) ||
        read_number(r, &tensor->offset, sizeof tensor->offset)) {
        return -1;
    }
    if (tensor->offset % alignment) {
        return damaged(r, "has the offset %" PRIu64 ", not a multiple of the alignment %" PRIu64,
                       tensor->offset, alignment);
    }
    return 0;
}

/* Checks that the data of a tensor which we can run is in the file. */
static int locate_tensor(struct reader *r, struct gguf_tensor *tensor, uint64_t data_start) {
    const int64_t *ne = tensor->ne;
    int block;
    size_t block_bytes;
    if (!tensor_type_block(tensor->type, &block, &block_bytes)) {
        return 0;
    }
    set_item_name(r, "tensor", tensor->name);
    if (ne[0] % block) {
        return damaged(r, "has rows of %" PRId64 " elements, not a multiple of the %d in a block of %s",
                       ne[0], block, tensor_type_name(tensor->type));
    }
    uint64_t bytes = multiply_saturating((uint64_t)(ne[0] / block * ne[1] * ne[2] * ne[3]), block_bytes);
    uint64_t end = add_saturating(add_saturating(data_start, tensor->offset), bytes);
    if (end > r->size) {
        return damaged(r, "ends at byte %" PRIu64 " but the file has %zu", end, r->size);
    }
    tensor->size = (size_t)bytes;
    tensor->data = r->base + data_start + tensor->offset;
    return 0;
}

static int read_alignment(const struct gguf *file, struct reader *r, uint64_t *alignment) {
    int64_t value = DEFAULT_ALIGNMENT;
    bool given = gguf_find_value(file, "general.alignment") != NULL;
    bool integer = gguf_get_int(file, "general.alignment", &value);
    if (given != integer || value < 8 || value > MAX_ALIGNMENT || (value & (value - 1))) {
        snprintf(r->item, sizeof r->item, "key 'general.alignment'");
        return damaged(r, "isn't a power of two from 8 to %d", MAX_ALIGNMENT);
    }
    *alignment = (uint64_t)value;
    return 0;
}

static int read_tensors(struct gguf *file, struct reader *r) {
    uint64_t alignment = 0;
    if (read_alignment(file, r, &alignment)) {
        return -1;
    }
    for (int i = 0; i < file->n_tensors; i++) {
        if (read_tensor(r, i + 1, alignment, &file->tensors[i])) {
            return -1;
        }
    }
    uint64_t data_start = ((uint64_t)r->pos + alignment - 1) / alignment * alignment;
    for (int i = 0; i < file->n_tensors; i++) {
        if (locate_tensor(r, &file->tensors[i], data_start)) {
            return -1;
        }
    }
    return 0;
}

/* The file as a whole. */

/* Says what a file that isn't GGUF might be. */
static int fail_not_gguf(const struct reader *r) {
    static const struct {
        size_t at;
        const char *bytes, *advice;
    } known[] = {
        {8, "{\"", "it looks like safetensors: convert it with export.py"},
        {0, "PK\003\004", "it looks like a PyTorch checkpoint: convert it with export.py"},
        {0, "version https://git-lfs", "it is a Git LFS pointer: bring the file itself with `git lfs pull`"},
        {0, "<", "it looks like a web page: the download went wrong"},
        {0, "lmgg", "it is an old ggml file: get a newer conversion"},
        {0, "fmgg", "it is an old ggmf file: get a newer conversion"},
        {0, "tjgg", "it is an old ggjt file: get a newer conversion"},
    };
    const char *advice = "check the path";
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        size_t len = strlen(known[i].bytes);
        if (r->size >= known[i].at + len && memcmp(r->base + known[i].at, known[i].bytes, len) == 0) {
            advice = known[i].advice;
            break;
        }
    }
    unsigned magic[4] = {0};
    for (size_t i = 0; i < 4 && i < r->size; i++) {
        magic[i] = r->base[i];
    }
    return fail(r->err, "%s: not a GGUF file (it starts with the bytes %02x %02x %02x %02x): %s", r->path,
                magic[0], magic[1], magic[2], magic[3], advice);
}

static int read_version(struct reader *r) {
    uint32_t version;
    if (r->size < 4 || memcmp(r->base, "GGUF", 4) != 0) {
        return fail_not_gguf(r);
    }
    r->pos = 4;
    if (read_number(r, &version, sizeof version)) {
        return -1;
    }
    if (version == 2 || version == 3) {
        return 0;
    }
    if (version > 0 && (version & 0xffffff) == 0) {
        return fail(r->err, "%s: a big-endian GGUF file: get a little-endian conversion", r->path);
    }
    return fail(r->err, "%s: GGUF version %" PRIu32 " where 2 and 3 are supported: get another conversion",
                r->path, version);
}

/* Reads a number of items which take at least `least` bytes each. */
static int read_count(struct reader *r, const char *kind, size_t least, int *out) {
    uint64_t n;
    size_t start = r->pos;
    if (read_number(r, &n, sizeof n)) {
        return -1;
    }
    if (n > GGUF_MAX_ITEMS || n > (r->size - r->pos) / least) {
        return damaged(r, "has %" PRIu64 " %s at byte %zu, impossible in a file of %zu bytes", n, kind, start,
                       r->size);
    }
    *out = (int)n;
    return 0;
}

/* Reads everything but the tensors' data. */
static int read_file(struct gguf *file, struct error *err) {
    struct reader r = {.path = gguf_shown_path(file->path), .base = file->base, .size = file->size,
                       .item = "the header", .err = err};
    if (read_version(&r) || read_count(&r, "tensors", 8 + 1 + 4 + 4 + 8, &file->n_tensors) ||
        read_count(&r, "keys", 8 + 1 + 4 + 1, &file->n_keys)) {
        return -1;
    }
    /* One more than needed, as calloc(0) may be NULL. */
    file->keys = calloc((size_t)file->n_keys + 1, sizeof *file->keys);
    file->key_names = calloc((size_t)file->n_keys + 1, sizeof *file->key_names);
    file->tensors = calloc((size_t)file->n_tensors + 1, sizeof *file->tensors);
    if (!file->keys || !file->key_names || !file->tensors) {
        return fail(err, "%s: out of memory for %d keys, %d tensors", r.path, file->n_keys, file->n_tensors);
    }
    if (read_keys(file, &r) || index_keys(file, err) || read_tensors(file, &r)) {
        return -1;
    }
    return gguf_index_tensors(file, err);
}

struct gguf *gguf_open_one(const char *path, enum gguf_access how, struct error *err) {
    struct gguf *file = calloc(1, sizeof *file);
    char *copy = strdup(path);
    if (!file || !copy) {
        free(file);
        free(copy);
        fail(err, "%s: out of memory", gguf_shown_path(path));
        return NULL;
    }
    file->path = copy;
    if (gguf_load_bytes(file, how, err) || read_file(file, err)) {
        gguf_close(file);
        return NULL;
    }
    return file;
}

/* The public functions. */

struct gguf *gguf_open(const char *path, enum gguf_access how, struct error *err) {
    struct gguf *file = gguf_open_one(path, how, err);
    if (file && gguf_open_parts(file, how, err)) {
        gguf_close(file);
        return NULL;
    }
    return file;
}

void gguf_close(struct gguf *file) {
    if (!file) {
        return;
    }
    for (int i = 0; i < file->n_parts; i++) {
        gguf_close(file->parts[i]);
    }
    gguf_release_bytes(file);
    free(file->parts);
    free(file->keys);
    free(file->key_names);
    free(file->tensors);
    free(file->tensor_names);
    free(file->path);
    free(file);
}

const char *gguf_path(const struct gguf *file) {
    return file->path;
}

size_t gguf_bytes(const struct gguf *file) {
    size_t bytes = file->size;
    for (int i = 0; i < file->n_parts; i++) {
        bytes += file->parts[i]->size;
    }
    return bytes;
}

int gguf_n_tensors(const struct gguf *file) {
    return file->n_tensors;
}

const struct gguf_tensor *gguf_tensor_at(const struct gguf *file, int i) {
    return &file->tensors[i];
}

const struct gguf_tensor *gguf_find_tensor(const struct gguf *file, const char *name) {
    int i = find_name(file->tensor_names, file->n_tensors, name);
    return i < 0 ? NULL : &file->tensors[i];
}

int gguf_n_keys(const struct gguf *file) {
    return file->n_keys;
}

struct gguf_string gguf_key_at(const struct gguf *file, int i) {
    return file->keys[i].name;
}

const struct gguf_value *gguf_value_at(const struct gguf *file, int i) {
    return &file->keys[i].value;
}

const struct gguf_value *gguf_find_value(const struct gguf *file, const char *key) {
    int i = find_name(file->key_names, file->n_keys, key);
    return i < 0 ? NULL : &file->keys[i].value;
}
