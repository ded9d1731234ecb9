/* gguf_value.c - what GGUF metadata holds, as numbers and as text; tensor types. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "gguf.h"

#define ELEMENTS_SHOWN 6     /* of an array, in gguf_value_text() */
#define ELEMENT_BYTES 40     /* at most, of a string in an array there */

/* Scalars and elements of arrays. */

/* Element i as an integer; false where it isn't one or doesn't fit. */
static bool element_int(const struct gguf_array *a, size_t i, int64_t *out) {
    union {
        int8_t i8;
        int16_t i16;
        uint16_t u16;
        int32_t i32;
        uint32_t u32;
        uint64_t u64;
        int64_t i64;
    } v;
    switch (a->type) {
    case GGUF_BOOL:
        *out = a->data[i] != 0;
        return true;
    case GGUF_U8:
        *out = a->data[i];
        return true;
    case GGUF_I8:
        memcpy(&v.i8, a->data + i, sizeof v.i8);
        *out = v.i8;
        return true;
    case GGUF_U16:
        memcpy(&v.u16, a->data + i * sizeof v.u16, sizeof v.u16);
        *out = v.u16;
        return true;
    case GGUF_I16:
        memcpy(&v.i16, a->data + i * sizeof v.i16, sizeof v.i16);
        *out = v.i16;
        return true;
    case GGUF_U32:
        memcpy(&v.u32, a->data + i * sizeof v.u32, sizeof v.u32);
        *out = v.u32;
        return true;
    case GGUF_I32:
        memcpy(&v.i32, a->data + i * sizeof v.i32, sizeof v.i32);
        *out = v.i32;
        return true;
    case GGUF_U64:
        memcpy(&v.u64, a->data + i * sizeof v.u64, sizeof v.u64);
        if (v.u64 > INT64_MAX) {
            return false;
        }
        *out = (int64_t)v.u64;
        return true;
    case GGUF_I64:
        memcpy(&v.i64, a->data + i * sizeof v.i64, sizeof v.i64);
        *out = v.i64;
        return true;
    default:
        return false;
    }
}

/* Element i as a number; false where it isn't one or a double can't hold it. */
static bool element_float(const struct gguf_array *a, size_t i, double *out) {
    int64_t integer;
    float f32;
    if (a->type == GGUF_F32) {
        memcpy(&f32, a->data + i * sizeof f32, sizeof f32);
        *out = f32;
        return true;
    }
    if (a->type == GGUF_F64) {
        memcpy(out, a->data + i * sizeof *out, sizeof *out);
        return true;
    }
    const int64_t exact = INT64_C(1) << 53;
    if (!element_int(a, i, &integer) || integer > exact || integer < -exact) {
        return false;
    }
    *out = (double)integer;
    return true;
}

int64_t gguf_array_int(const struct gguf_array *a, size_t i) {
    int64_t value;
    return element_int(a, i, &value) ? value : 0;
}

double gguf_array_float(const struct gguf_array *a, size_t i) {
    double value;
    return element_float(a, i, &value) ? value : 0.0;
}

struct gguf_string gguf_array_next(const struct gguf_array *a, const uint8_t **cursor) {
    uint64_t len;
    if (a->type != GGUF_STRING) {
        return (struct gguf_string){"", 0};
    }
    memcpy(&len, *cursor, sizeof len);
    struct gguf_string string = {(const char *)*cursor + sizeof len, (size_t)len};
    *cursor += sizeof len + string.len;
    return string;
}

/* The array of one that holds a scalar; NULL where the key is missing or an array. */
static const struct gguf_array *find_scalar(const struct gguf *file, const char *key) {
    const struct gguf_value *value = gguf_find_value(file, key);
    return value && !value->is_array ? &value->array : NULL;
}

bool gguf_get_int(const struct gguf *file, const char *key, int64_t *out) {
    const struct gguf_array *scalar = find_scalar(file, key);
    return scalar && scalar->type != GGUF_BOOL && element_int(scalar, 0, out);
}

bool gguf_get_float(const struct gguf *file, const char *key, double *out) {
    const struct gguf_array *scalar = find_scalar(file, key);
    return scalar && scalar->type != GGUF_BOOL && element_float(scalar, 0, out);
}

bool gguf_get_bool(const struct gguf *file, const char *key, bool *out) {
    const struct gguf_array *scalar = find_scalar(file, key);
    if (!scalar || scalar->type != GGUF_BOOL) {
        return false;
    }
    *out = scalar->data[0] != 0;
    return true;
}

bool gguf_get_string(const struct gguf *file, const char *key, struct gguf_string *out) {
    const struct gguf_array *scalar = find_scalar(file, key);
    if (!scalar || scalar->type != GGUF_STRING) {
        return false;
    }
    const uint8_t *cursor = scalar->data;
    *out = gguf_array_next(scalar, &cursor);
    return true;
}

bool gguf_get_array(const struct gguf *file, const char *key, struct gguf_array *out) {
    const struct gguf_value *value = gguf_find_value(file, key);
    if (!value || !value->is_array) {
        return false;
    }
    *out = value->array;
    return true;
}

/* Text. */

/* Bytes of the printable UTF-8 character at s[0..n), 0 where there is none. */
static size_t printable(const unsigned char *s, size_t n) {
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000}; /* shorter would have done */
    size_t len = s[0] < 0x80 ? 1 : s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : s[0] >= 0xc0 ? 2 : 0;
    if (len == 0 || len > n) {
        return 0;
    }
    uint32_t c = len == 1 ? s[0] : s[0] & (0x7fu >> len);
    for (size_t i = 1; i < len; i++) {
        if ((s[i] & 0xc0) != 0x80) {
            return 0;
        }
        c = c << 6 | (s[i] & 0x3f);
    }
    bool control = c < 0x20 || (c >= 0x7f && c < 0xa0);
    bool valid = s[0] < 0xf8 && c >= least[len] && c <= 0x10ffff && (c < 0xd800 || c > 0xdfff);
    return valid && !control ? len : 0;
}

size_t gguf_quote(struct gguf_string text, char *buf, size_t size) {
    const size_t tail = strlen("...'") + 1;
    if (size <= tail) {
        return (size_t)snprintf(buf, size, "%s", "");
    }
    size_t len = 0;
    buf[len++] = '\'';
    for (size_t i = 0, step; i < text.len; i += step) {
        char escape[8];
        const char *shown = text.data + i;
        size_t shown_len = step = printable((const unsigned char *)shown, text.len - i);
        if (step == 0) {
            unsigned byte = (unsigned char)*shown;
            step = 1;
            shown_len = (size_t)snprintf(escape, sizeof escape, byte == '\n' ? "\\n" : "\\x%02x", byte);
            shown = escape;
        }
        if (len + shown_len + tail > size) {
            memcpy(buf + len, "...", 3);
            len += 3;
            break;
        }
        memcpy(buf + len, shown, shown_len);
        len += shown_len;
    }
    buf[len++] = '\'';
    buf[len] = '\0';
    return len;
}

/* Element i of an array that isn't of strings. */
static void number_text(const struct gguf_array *a, size_t i, char *buf, size_t size) {
    int64_t integer;
    if (a->type == GGUF_BOOL) {
        snprintf(buf, size, "%s", a->data[i] ? "true" : "false");
    } else if (element_int(a, i, &integer)) {
        snprintf(buf, size, "%" PRId64, integer);
    } else if (a->type == GGUF_U64) {
        snprintf(buf, size, "above %" PRId64, INT64_MAX);
    } else {
        snprintf(buf, size, "%g", gguf_array_float(a, i));
    }
}

/* Appends to buf[0..len); returns the new length. */
static size_t append(char *buf, size_t size, size_t len, const char *text) {
    int n = snprintf(buf + len, size - len, "%s", text);
    return len + (size_t)n < size ? len + (size_t)n : size - 1;
}

void gguf_value_text(const struct gguf *file, int i, char *buf, size_t size) {
    static const char *const type_names[] = {"u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string",
                                             "array", "u64", "i64", "f64"};
    const struct gguf_value *value = gguf_value_at(file, i);
    const struct gguf_array *a = &value->array;
    const uint8_t *cursor = a->data;
    char element[64];
    size_t len = 0;
    if (size == 0) {
        return;
    }
    if (!value->is_array && a->type == GGUF_STRING) {
        gguf_quote(gguf_array_next(a, &cursor), buf, size);
        return;
    }
    buf[0] = '\0';
    if (value->is_array) {
        snprintf(element, sizeof element, "%s[%zu]%s", type_names[a->type], a->n, a->n ? ": " : "");
        len = append(buf, size, len, element);
    }
    for (size_t j = 0; j < a->n && j < ELEMENTS_SHOWN; j++) {
        if (a->type == GGUF_STRING) {
            gguf_quote(gguf_array_next(a, &cursor), element, ELEMENT_BYTES);
        } else {
            number_text(a, j, element, sizeof element);
        }
        len = append(buf, size, len, j ? ", " : "");
        len = append(buf, size, len, element);
    }
    append(buf, size, len, a->n > ELEMENTS_SHOWN ? ", ..." : "");
}

/* Tensor types. */

struct type_info {
    const char *name;
    int elements;            /* of a block; 0 for types that we can't run */
    size_t bytes;
};

static const struct type_info type_infos[] = {
    [TENSOR_F32] = {"F32", 1, 4},
    [TENSOR_F16] = {"F16", 1, 2},
    [TENSOR_BF16] = {"BF16", 1, 2},
    [TENSOR_Q4_0] = {"Q4_0", 32, 18},
    [TENSOR_Q4_1] = {"Q4_1", 32, 20},
    [TENSOR_Q5_0] = {"Q5_0", 32, 22},
    [TENSOR_Q5_1] = {"Q5_1", 32, 24},
    [TENSOR_Q8_0] = {"Q8_0", 32, 34},
    [TENSOR_Q4_K] = {"Q4_K", 256, 144},
    [TENSOR_Q5_K] = {"Q5_K", 256, 176},
    [TENSOR_Q6_K] = {"Q6_K", 256, 210},
    [9] = {.name = "Q8_1"}, [10] = {.name = "Q2_K"}, [11] = {.name = "Q3_K"},
    [15] = {.name = "Q8_K"}, [16] = {.name = "IQ2_XXS"}, [17] = {.name = "IQ2_XS"},
    [18] = {.name = "IQ3_XXS"}, [19] = {.name = "IQ1_S"}, [20] = {.name = "IQ4_NL"},
    [21] = {.name = "IQ3_S"}, [22] = {.name = "IQ2_S"}, [23] = {.name = "IQ4_XS"},
    [24] = {.name = "I8"}, [25] = {.name = "I16"}, [26] = {.name = "I32"},
    [27] = {.name = "I64"}, [28] = {.name = "F64"}, [29] = {.name = "IQ1_M"},
    [34] = {.name = "TQ1_0"}, [35] = {.name = "TQ2_0"}, [39] = {.name = "MXFP4"},
    [40] = {.name = "NVFP4"},
};

static const struct type_info *find_type(uint32_t type) {
    bool defined = type < sizeof type_infos / sizeof type_infos[0] && type_infos[type].name;
    return defined ? &type_infos[type] : NULL;
}

const char *tensor_type_name(uint32_t type) {
    const struct type_info *info = find_type(type);
    return info ? info->name : "unknown";
}

bool tensor_type_block(uint32_t type, int *elements, size_t *bytes) {
    const struct type_info *info = find_type(type);
    if (!info || info->elements == 0) {
        return false;
    }
    *elements = info->elements;
    *bytes = info->bytes;
    return true;
}
