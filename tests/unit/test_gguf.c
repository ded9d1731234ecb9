/* test_gguf.c - what a well-formed file gives, and what a damaged one is told. */
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "gguf_writer.h"

#define N(array) (sizeof(array) / sizeof((array)[0]))
#define HUGE_COUNT (UINT64_C(1) << 60)

static char dir[] = "/tmp/test-gguf-XXXXXX";
static char path[256];
static struct gguf_writer w;

static const char *in_dir(const char *name) {
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

static bool is(struct gguf_string string, const char *text) {
    return string.len == strlen(text) && memcmp(string.data, text, string.len) == 0;
}

/* Opens w's file, which must be fine. */
static struct gguf *open_written(void) {
    struct error err = {0};
    writer_save(&w, in_dir("good.gguf"));
    struct gguf *file = gguf_open(path, GGUF_MAPPED, &err);
    if (!file) {
        printf("%s\n", err.text);
        exit(1);
    }
    return file;
}

/* The path must be refused with one line that names it and holds `fragment`. */
static void refuse_path(const char *name, const char *fragment, int line) {
    struct error err = {0};
    struct gguf *file = gguf_open(name, GGUF_MAPPED, &err);
    bool right = !file && strstr(err.text, fragment) && strncmp(err.text, name, strlen(name)) == 0 &&
                 !strchr(err.text, '\n');
    if (!right) {
        printf("%s:%d: expected \"%s\", got \"%s\"\n", __FILE__, line, fragment, file ? "success" : err.text);
    }
    CHECK(right);
    gguf_close(file);
}

/* Takes what w holds as a file, and starts w anew. */
static void refuse_written(const char *fragment, int line) {
    writer_save(&w, in_dir("bad.gguf"));
    refuse_path(path, fragment, line);
    writer_free(&w);
}

#define REFUSE(fragment) refuse_written(fragment, __LINE__)
#define REFUSE_PATH(name, fragment) refuse_path(name, fragment, __LINE__)

/* Metadata of all types, two tensors that we can run and one that we can't. */
static void put_sample(uint32_t version) {
    put_header(&w, version, 3, 17);
    put_key_string(&w, "general.architecture", "llama");
    put_key(&w, "u8", GGUF_U8);
    put_bytes(&w, "\xff", 1);
    put_key(&w, "i8", GGUF_I8);
    put_bytes(&w, "\xff", 1);
    put_key(&w, "u16", GGUF_U16);
    put_bytes(&w, "\xfe\xff", 2);
    put_key(&w, "i16", GGUF_I16);
    put_bytes(&w, "\xfe\xff", 2);
    put_key_u32(&w, "u32", UINT32_MAX);
    put_key(&w, "i32", GGUF_I32);
    put_u32(&w, (uint32_t)-3);
    put_key(&w, "u64", GGUF_U64);
    put_u64(&w, INT64_MAX);
    put_key(&w, "too large", GGUF_U64);
    put_u64(&w, UINT64_MAX);
    put_key(&w, "i64", GGUF_I64);
    put_u64(&w, (uint64_t)INT64_MIN);
    put_key_f32(&w, "f32", 0.25f);
    put_key(&w, "f64", GGUF_F64);
    put_bytes(&w, &(double){1e300}, 8);
    put_key(&w, "bool", GGUF_BOOL);
    put_bytes(&w, "\1", 1);
    put_key_array(&w, "tokens", GGUF_STRING, 3);
    put_string(&w, "<s>");
    put_string(&w, "");
    put_string(&w, "caf\xc3\xa9\n");
    put_key_array(&w, "scores", GGUF_F32, 2);
    put_bytes(&w, (float[]){-1.5f, 2.5f}, 8);
    put_key_array(&w, "heads", GGUF_I16, 8);
    put_bytes(&w, (int16_t[]){-1, 2, 3, 4, 5, 6, 7, 8}, 16);
    put_key_array(&w, "empty", GGUF_U64, 0);
    put_tensor(&w, "b.weight", 2, (uint64_t[]){64, 3}, TENSOR_Q4_1, 64);
    put_tensor(&w, "a.bias", 1, (uint64_t[]){5}, TENSOR_F32, 32);
    put_tensor(&w, "odd", 3, (uint64_t[]){7, 2, 2}, 10, 1 << 20);
    put_padding(&w, 32);
    put_zeros(&w, 32);
    put_bytes(&w, (float[]){1, 2, 3, 4, 5}, 20);
    put_padding(&w, 32);
    put_zeros(&w, 64 * 3 / 32 * 20);
}

static void test_scalars(const struct gguf *file) {
    static const struct {
        const char *key;
        int64_t value;
    } integers[] = {{"u8", 255}, {"i8", -1}, {"u16", 65534}, {"i16", -2}, {"u32", UINT32_MAX}, {"i32", -3},
                    {"u64", INT64_MAX}, {"i64", INT64_MIN}};
    static const char *const others[] = {"too large", "f32", "bool", "general.architecture", "heads", "none"};
    int64_t i = 7;
    double d = 7;
    bool b = false;
    struct gguf_string s = {"", 0};
    for (size_t k = 0; k < N(integers); k++) {
        CHECK(gguf_get_int(file, integers[k].key, &i) && i == integers[k].value);
    }
    i = 7;
    for (size_t k = 0; k < N(others); k++) {
        CHECK(!gguf_get_int(file, others[k], &i) && i == 7);
    }
    CHECK(gguf_get_float(file, "f32", &d) && d == 0.25);
    CHECK(gguf_get_float(file, "f64", &d) && d == 1e300);
    CHECK(gguf_get_float(file, "i16", &d) && d == -2);
    CHECK(!gguf_get_float(file, "u64", &d) && !gguf_get_float(file, "bool", &d) && d == -2);
    CHECK(gguf_get_bool(file, "bool", &b) && b);
    CHECK(!gguf_get_bool(file, "u8", &b));
    CHECK(gguf_get_string(file, "general.architecture", &s) && is(s, "llama"));
    CHECK(!gguf_get_string(file, "tokens", &s) && !gguf_get_string(file, "u8", &s) && is(s, "llama"));
}

static void test_arrays(const struct gguf *file) {
    struct gguf_array a;
    CHECK(!gguf_get_array(file, "u8", &a) && !gguf_get_array(file, "none", &a));
    CHECK(gguf_get_array(file, "tokens", &a) && a.type == GGUF_STRING && a.n == 3);
    const uint8_t *cursor = a.data;
    CHECK(is(gguf_array_next(&a, &cursor), "<s>"));
    CHECK(is(gguf_array_next(&a, &cursor), ""));
    CHECK(is(gguf_array_next(&a, &cursor), "caf\xc3\xa9\n"));
    CHECK(gguf_array_int(&a, 0) == 0 && gguf_array_float(&a, 0) == 0);
    CHECK(gguf_get_array(file, "scores", &a) && a.type == GGUF_F32 && a.n == 2);
    CHECK(gguf_array_float(&a, 0) == -1.5 && gguf_array_float(&a, 1) == 2.5 && gguf_array_int(&a, 1) == 0);
    cursor = a.data;
    CHECK(gguf_array_next(&a, &cursor).len == 0 && cursor == a.data);
    CHECK(gguf_get_array(file, "heads", &a) && a.type == GGUF_I16 && a.n == 8);
    CHECK(gguf_array_int(&a, 0) == -1 && gguf_array_int(&a, 7) == 8 && gguf_array_float(&a, 2) == 3);
    CHECK(gguf_get_array(file, "empty", &a) && a.type == GGUF_U64 && a.n == 0);
}

static void test_tensors(const struct gguf *file) {
    CHECK(gguf_n_tensors(file) == 3);
    const struct gguf_tensor *t = gguf_find_tensor(file, "b.weight");
    CHECK(t && t == gguf_tensor_at(file, 0) && is(t->name, "b.weight"));
    CHECK(t->n_dims == 2 && t->ne[0] == 64 && t->ne[1] == 3 && t->ne[2] == 1 && t->ne[3] == 1);
    CHECK(t->type == TENSOR_Q4_1 && t->size == 120 && t->offset == 64);
    CHECK(t->data && (uintptr_t)t->data % 32 == 0);
    t = gguf_find_tensor(file, "a.bias");
    CHECK(t && t->n_dims == 1 && t->size == 20 && memcmp(t->data, (float[]){1, 2, 3, 4, 5}, 20) == 0);
    t = gguf_find_tensor(file, "odd");
    CHECK(t && t->type == 10 && t->ne[2] == 2 && t->data == NULL && t->size == 0);
    CHECK(!gguf_find_tensor(file, "b.weigh") && !gguf_find_tensor(file, "b.weights"));
    CHECK(!gguf_find_tensor(file, ""));
}

static void test_text(const struct gguf *file) {
    static const char *const expected[] = {
        "'llama'", "255", "-1", "65534", "-2", "4294967295", "-3", "9223372036854775807",
        "above 9223372036854775807", "-9223372036854775808", "0.25", "1e+300", "true",
        "string[3]: '<s>', '', 'caf\xc3\xa9\\n'", "f32[2]: -1.5, 2.5", "i16[8]: -1, 2, 3, 4, 5, 6, ...",
        "u64[0]",
    };
    char text[100];
    CHECK(gguf_n_keys(file) == (int)N(expected));
    CHECK(is(gguf_key_at(file, 1), "u8"));
    for (int i = 0; i < (int)N(expected); i++) {
        gguf_value_text(file, i, text, sizeof text);
        CHECK(strcmp(text, expected[i]) == 0);
        for (size_t size = 0; size < sizeof text; size++) { /* never writes beyond `size` */
            memset(text, '#', sizeof text);
            gguf_value_text(file, i, text, size);
            CHECK(text[size] == '#' && (size == 0 || memchr(text, '\0', size)));
        }
    }
}

static void test_quote(void) {
    static const struct {
        const char *text, *quoted;
    } cases[] = {
        {"", "''"},
        {"caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80", "'caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80'"},
        {"\x1b[31m\x7f\t\n", "'\\x1b[31m\\x7f\\x09\\n'"},
        {"\xc2\x9b", "'\\xc2\\x9b'"},             /* a control character in two bytes */
        {"\xc0\xaf", "'\\xc0\\xaf'"},             /* longer than need be */
        {"\xed\xa0\x80", "'\\xed\\xa0\\x80'"},    /* a surrogate */
        {"\xff\xe2\x82", "'\\xff\\xe2\\x82'"},    /* cut off */
        {"0123456789012345678901234567890123456789", "'012345678901234567890123456...'"},
        {"012345678901234567890123456\xc3\xa9 and more", "'012345678901234567890123456...'"},
    };
    char buf[33];
    for (size_t i = 0; i < N(cases); i++) {
        size_t len = gguf_quote((struct gguf_string){cases[i].text, strlen(cases[i].text)}, buf, sizeof buf);
        CHECK(len == strlen(cases[i].quoted) && strcmp(buf, cases[i].quoted) == 0);
    }
}

static void test_types(void) {
    int elements = 0;
    size_t bytes = 0;
    CHECK(tensor_type_block(TENSOR_Q6_K, &elements, &bytes) && elements == 256 && bytes == 210);
    CHECK(tensor_type_block(TENSOR_BF16, &elements, &bytes) && elements == 1 && bytes == 2);
    CHECK(!tensor_type_block(10, &elements, &bytes) && !tensor_type_block(4, &elements, &bytes));
    CHECK(!tensor_type_block(UINT32_MAX, &elements, &bytes));
    CHECK(strcmp(tensor_type_name(TENSOR_Q4_1), "Q4_1") == 0 && strcmp(tensor_type_name(10), "Q2_K") == 0);
    CHECK(strcmp(tensor_type_name(4), "unknown") == 0);
    CHECK(strcmp(tensor_type_name(UINT32_MAX), "unknown") == 0);
}

static void test_good_files(void) {
    for (uint32_t version = 2; version <= 3; version++) {
        put_sample(version);
        struct gguf *file = open_written();
        CHECK(strcmp(gguf_path(file), path) == 0 && gguf_bytes(file) == w.len);
        test_scalars(file);
        test_arrays(file);
        test_tensors(file);
        test_text(file);
        gguf_close(file);
        writer_free(&w);
    }

    put_header(&w, 3, 0, 1); /* a vocabulary-only file ends without padding */
    put_key_u32(&w, "a", 1);
    struct gguf *file = open_written();
    CHECK(gguf_n_tensors(file) == 0 && !gguf_find_tensor(file, "a"));
    gguf_close(file);
    writer_free(&w);

    put_header(&w, 3, 2, 1);
    put_key_u32(&w, "general.alignment", 256);
    put_tensor(&w, "scalar", 0, NULL, TENSOR_F32, 0);
    put_tensor(&w, "half", 4, (uint64_t[]){2, 3, 4, 5}, TENSOR_F16, 256);
    put_padding(&w, 256);
    put_zeros(&w, 256);
    put_zeros(&w, 2 * 3 * 4 * 5 * 2);
    file = open_written();
    const struct gguf_tensor *t = gguf_find_tensor(file, "scalar");
    CHECK(t && t->n_dims == 1 && t->ne[0] == 1 && t->size == 4 && (uintptr_t)t->data % 256 == 0);
    t = gguf_find_tensor(file, "half");
    CHECK(t && t->n_dims == 4 && t->ne[3] == 5 && t->size == 240);
    gguf_close(file);
    writer_free(&w);

    gguf_close(NULL);
}

static void test_not_gguf(void) {
    REFUSE_PATH(in_dir("missing.gguf"), "can't open it: No such file or directory");
    REFUSE_PATH(dir, "a directory, not a GGUF file");
    mkfifo(in_dir("fifo"), 0600);
    REFUSE_PATH(path, "not a regular file");
    if (geteuid() != 0) { /* root may read everything */
        put_sample(3);
        writer_save(&w, in_dir("secret.gguf"));
        writer_free(&w);
        chmod(path, 0);
        REFUSE_PATH(path, "can't open it: Permission denied");
    }
    REFUSE("the file is empty");
    put_bytes(&w, "GG", 2);
    REFUSE("not a GGUF file (it starts with the bytes 47 47 00 00): check the path");
    put_bytes(&w, "\x80\0\0\0\0\0\0\0{\"__metadata__\"", 24);
    REFUSE("it looks like safetensors");
    put_bytes(&w, "PK\3\4", 4);
    REFUSE("it looks like a PyTorch checkpoint");
    put_bytes(&w, "version https://git-lfs.github.com/spec/v1", 42);
    REFUSE("Git LFS pointer");
    put_bytes(&w, "<!DOCTYPE html>", 15);
    REFUSE("it looks like a web page");
    put_bytes(&w, "tjgg\1\0\0\0", 8);
    REFUSE("old ggjt file");
    put_header(&w, 0x03000000, 0, 0);
    REFUSE("a big-endian GGUF file");
    put_header(&w, 1, 0, 0);
    REFUSE("GGUF version 1 where 2 and 3 are supported");
    put_header(&w, 4, 0, 0);
    REFUSE("GGUF version 4");
}

static void test_bad_header(void) {
    put_bytes(&w, "GGUF\3", 5);
    REFUSE("the header needs 4 bytes at byte 4, but the file ends at byte 5");
    put_bytes(&w, "GGUF\3\0\0\0\1\0", 10);
    REFUSE("the header needs 8 bytes at byte 8");
    put_header(&w, 3, HUGE_COUNT, 0);
    REFUSE("the header has 1152921504606846976 tensors at byte 8, impossible in a file of 24 bytes");
    put_header(&w, 3, 0, HUGE_COUNT);
    REFUSE("the header has 1152921504606846976 keys at byte 16");
    put_header(&w, 3, 0, 3);
    put_key_u32(&w, "a", 1);
    REFUSE("the header has 3 keys");
    put_header(&w, 3, 0, (1 << 20) + 1);
    put_zeros(&w, 20 << 20);
    REFUSE("the header has 1048577 keys");
}

static void test_bad_keys(void) {
    put_header(&w, 3, 0, 1);
    put_u64(&w, HUGE_COUNT);
    put_zeros(&w, 16);
    REFUSE("key number 1 needs 1152921504606846976 bytes at byte 32");
    put_header(&w, 3, 0, 2);
    put_key_u32(&w, "first", 1);
    put_u64(&w, 0);
    put_zeros(&w, 16);
    REFUSE("key number 2 has a name of 0 bytes at byte 45");
    put_header(&w, 3, 0, 1);
    put_u64(&w, 65536);
    put_zeros(&w, 70000);
    REFUSE("key number 1 has a name of 65536 bytes at byte 24");
    put_header(&w, 3, 0, 1);
    put_key(&w, "odd", 13);
    put_zeros(&w, 8);
    REFUSE("key 'odd' has the unknown value type 13 at byte 35");
    put_header(&w, 3, 0, 1);
    put_key(&w, "one too many", GGUF_U64);
    put_u32(&w, 1);
    REFUSE("key 'one too many' needs 8 bytes at byte 48, but the file ends at byte 52");
    put_header(&w, 3, 0, 1);
    put_key(&w, "text", GGUF_STRING);
    put_u64(&w, UINT64_MAX);
    REFUSE("key 'text' needs 18446744073709551615 bytes");
    put_header(&w, 3, 0, 1);
    put_key_array(&w, "ids", GGUF_U32, HUGE_COUNT * 4);
    put_zeros(&w, 64);
    REFUSE("key 'ids' needs 18446744073709551615 bytes");
    put_header(&w, 3, 0, 1);
    put_key_array(&w, "ids", GGUF_U32, 5);
    put_zeros(&w, 19);
    REFUSE("key 'ids' needs 20 bytes");
    put_header(&w, 3, 0, 1);
    put_key_array(&w, "tokens", GGUF_STRING, HUGE_COUNT);
    put_zeros(&w, 4096);
    REFUSE("key 'tokens' needs 8 bytes at byte 4150, but the file ends at byte 4150");
    put_header(&w, 3, 0, 1);
    put_key_array(&w, "odd", 99, 1);
    put_zeros(&w, 8);
    REFUSE("key 'odd' has the unknown value type 99");
    put_header(&w, 3, 0, 1);
    put_key_array(&w, "nested", GGUF_ARRAY, 1);
    put_zeros(&w, 32);
    REFUSE("key 'nested' at byte 38 is an array of arrays, which isn't supported");
    put_header(&w, 3, 0, 3);
    put_key_u32(&w, "same", 1);
    put_key_u32(&w, "other", 1);
    put_key_u32(&w, "same", 2);
    REFUSE("key 'same' occurs twice");
    put_header(&w, 3, 0, 1);
    put_key(&w, "\x1b[2J\n", 77);
    REFUSE("key '\\x1b[2J\\n' has the unknown value type");
    put_header(&w, 3, 0, 1);
    put_key_u32(&w, "general.alignment", 24);
    REFUSE("key 'general.alignment' isn't a power of two");
    put_header(&w, 3, 0, 1);
    put_key_u32(&w, "general.alignment", 0);
    REFUSE("key 'general.alignment' isn't a power of two");
    put_header(&w, 3, 0, 1);
    put_key_u32(&w, "general.alignment", 1u << 31);
    REFUSE("key 'general.alignment' isn't a power of two");
    put_header(&w, 3, 0, 1);
    put_key_string(&w, "general.alignment", "32");
    REFUSE("key 'general.alignment' isn't a power of two");
}

/* A file of one tensor "t" with plenty of data after it. */
static void put_one_tensor(uint32_t n_dims, const uint64_t *ne, uint32_t type, uint64_t offset) {
    put_header(&w, 3, 1, 0);
    put_tensor(&w, "t", n_dims, ne, type, offset);
    put_padding(&w, 32);
    put_zeros(&w, 4096);
}

static void test_bad_tensors(void) {
    put_one_tensor(5, (uint64_t[]){1, 1, 1, 1, 1}, TENSOR_F32, 0);
    REFUSE("tensor 't' has 5 dimensions where 4 are the limit");
    put_one_tensor(2, (uint64_t[]){8, 0}, TENSOR_F32, 0);
    REFUSE("tensor 't' has the impossible size 0 in dimension 1");
    put_one_tensor(1, (uint64_t[]){UINT64_MAX}, TENSOR_F32, 0);
    REFUSE("tensor 't' has the impossible size 18446744073709551615 in dimension 0");
    put_one_tensor(3, (uint64_t[]){1u << 31, 1u << 31, 1u << 31}, TENSOR_F32, 0);
    REFUSE("tensor 't' has the impossible size 2147483648 in dimension 2");
    put_one_tensor(2, (uint64_t[]){1u << 31, 1u << 31}, 10, 0);
    gguf_close(open_written()); /* nobody reads the data of an unknown type */
    writer_free(&w);
    put_one_tensor(2, (uint64_t[]){1u << 31, 1u << 31}, TENSOR_F32, 0);
    REFUSE("tensor 't' ends at byte 18446744073709551615 but the file has 4192");
    put_one_tensor(1, (uint64_t[]){8}, TENSOR_F32, UINT64_MAX - 31);
    REFUSE("tensor 't' ends at byte 18446744073709551615");
    put_one_tensor(1, (uint64_t[]){8}, TENSOR_F32, 4096);
    REFUSE("tensor 't' ends at byte 4192 but the file has 4160: the file is incomplete or damaged, fetch it");
    put_one_tensor(1, (uint64_t[]){1025}, TENSOR_F32, 0);
    REFUSE("tensor 't' ends at byte 4164 but the file has 4160");
    put_one_tensor(1, (uint64_t[]){8}, TENSOR_F32, 4);
    REFUSE("tensor 't' has the offset 4, not a multiple of the alignment 32");
    put_one_tensor(2, (uint64_t[]){48, 2}, TENSOR_Q8_0, 0);
    REFUSE("tensor 't' has rows of 48 elements, not a multiple of the 32 in a block of Q8_0");
    put_one_tensor(1, (uint64_t[]){128}, TENSOR_Q4_K, 0);
    REFUSE("tensor 't' has rows of 128 elements, not a multiple of the 256 in a block of Q4_K");
    put_header(&w, 3, 1, 0); /* no data section */
    put_tensor(&w, "t", 1, (uint64_t[]){1}, TENSOR_F32, 0);
    REFUSE("tensor 't' ends at byte 68 but the file has 57");
    put_header(&w, 3, 2, 0);
    put_tensor(&w, "t", 1, (uint64_t[]){1}, TENSOR_F32, 0);
    put_tensor(&w, "t", 1, (uint64_t[]){1}, TENSOR_F32, 0);
    put_zeros(&w, 64);
    REFUSE("tensor 't' occurs twice");
    put_header(&w, 3, 1, 0);
    put_u64(&w, 0);
    put_zeros(&w, 64);
    REFUSE("tensor number 1 has a name of 0 bytes");
    put_header(&w, 3, 1, 0);
    put_u64(&w, 65);
    put_zeros(&w, 64);
    REFUSE("tensor number 1 needs 65 bytes at byte 32, but the file ends at byte 96");
}

/* Cut anywhere before the last tensor's last byte, the sample is refused. */
static void test_truncation(void) {
    put_sample(3);
    size_t whole = w.len;
    for (size_t len = 0; len < whole; len++) {
        struct error err = {0};
        w.len = len;
        writer_save(&w, in_dir("cut.gguf"));
        CHECK(!gguf_open(path, GGUF_MAPPED, &err) && strstr(err.text, "cut.gguf: "));
    }
    writer_free(&w);
}

/* Part `index` of `count` with one tensor, promising `total` in all. */
static void save_part(const char *name, uint32_t index, uint32_t count, uint32_t total, const char *tensor) {
    put_header(&w, 3, 1, 4);
    put_key_u32(&w, "split.no", index);
    put_key_u32(&w, "split.count", count);
    put_key_u32(&w, "split.tensors.count", total);
    put_key_u32(&w, "which", index);
    put_tensor(&w, tensor, 1, (uint64_t[]){8}, TENSOR_F32, 0);
    put_padding(&w, 32);
    put_bytes(&w, (float[]){(float)index, 0, 0, 0, 0, 0, 0, 0}, 32);
    writer_save(&w, in_dir(name));
    writer_free(&w);
}

static void test_split_set(void) {
    struct error err = {0};
    save_part("m-00003-of-00003.gguf", 2, 3, 3, "c");
    save_part("m-00001-of-00003.gguf", 0, 3, 3, "a");
    char first[256], second[256];
    snprintf(first, sizeof first, "%s", path);
    snprintf(second, sizeof second, "%s", in_dir("m-00002-of-00003.gguf"));
    CHECK(!gguf_open(first, GGUF_MAPPED, &err) && strstr(err.text, second));
    CHECK(strstr(err.text, "part 2 of 3 is missing"));

    save_part("m-00002-of-00003.gguf", 1, 3, 3, "b");
    struct gguf *file = gguf_open(first, GGUF_MAPPED, &err);
    CHECK(file != NULL);
    if (file) {
        struct stat st;
        int64_t which = -1;
        CHECK(gguf_n_tensors(file) == 3 && gguf_n_keys(file) == 4);
        CHECK(gguf_get_int(file, "which", &which) && which == 0);
        for (int i = 0; i < 3; i++) {
            const struct gguf_tensor *t = gguf_find_tensor(file, (const char *[]){"a", "b", "c"}[i]);
            CHECK(t && t == gguf_tensor_at(file, i) && memcmp(t->data, &(float){(float)i}, 4) == 0);
        }
        CHECK(stat(first, &st) == 0 && gguf_bytes(file) == 3 * (size_t)st.st_size);
        gguf_close(file);
    }

    CHECK(!gguf_open(second, GGUF_MAPPED, &err) && strstr(err.text, first));
    CHECK(strstr(err.text, "part 2 of 3 of a split set: open the first instead"));
    save_part("renamed.gguf", 0, 3, 3, "a");
    REFUSE_PATH(path, "its name doesn't end in -00001-of-00003.gguf");
    save_part("m-00001-of-00003.gguf", 0, 70000000, 3, "a");
    REFUSE_PATH(path, "split.no is 0 and split.count 70000000");
    save_part("m-00001-of-00003.gguf", 4, 3, 3, "a");
    REFUSE_PATH(path, "split.no is 4 and split.count 3");

    save_part("m-00001-of-00003.gguf", 0, 3, 4, "a");
    REFUSE_PATH(path, "split.tensors.count is 4, but the parts hold 3 tensors");
    save_part("m-00001-of-00003.gguf", 0, 3, 3, "c");
    REFUSE_PATH(path, "tensor 'c' occurs twice");
    save_part("m-00002-of-00003.gguf", 2, 3, 3, "b");
    CHECK(!gguf_open(first, GGUF_MAPPED, &err) && strstr(err.text, second));
    CHECK(strstr(err.text, "split.no is 2 and split.count 3, but 1 and 3 belong"));
}

int main(void) {
    char command[300];
    if (!mkdtemp(dir)) {
        perror(dir);
        return 1;
    }
    test_good_files();
    test_quote();
    test_types();
    test_not_gguf();
    test_bad_header();
    test_bad_keys();
    test_bad_tensors();
    test_truncation();
    test_split_set();
    snprintf(command, sizeof command, "rm -r %s", dir);
    CHECK(system(command) == 0);
    return check_done("gguf");
}
