/* fuzz_gguf.c - opens damaged copies of a GGUF file and reads all that the
 * accepted ones hold.
 *
 *     fuzz_gguf FILE COUNT SEED
 *
 * Copy i is damaged with the seed SEED + i. It's written to a temporary file,
 * which a crash (or a hang, after 20 seconds) leaves behind. Build it with
 * -fsanitize=address,undefined and heap_mmap.c. */
#include <unistd.h>

#include "../../gguf.h"
#include "fuzz.h"

#define TIME_LIMIT 20 /* seconds for one copy */

/* A sum over all bytes: what is summed up is read. */
static uint64_t sum_bytes(const void *data, size_t n) {
    uint64_t sum = 0;
    for (size_t i = 0; i < n; i++) {
        sum += ((const uint8_t *)data)[i];
    }
    return sum;
}

static uint64_t read_array(const struct gguf_array *a) {
    const uint8_t *cursor = a->data;
    uint64_t sum = 0;
    for (size_t i = 0; i < a->n; i++) {
        struct gguf_string s = gguf_array_next(a, &cursor);
        sum += sum_bytes(s.data, s.len);
        sum += (uint64_t)gguf_array_int(a, i) + (gguf_array_float(a, i) > 0);
    }
    return sum;
}

/* All getters with a key, whatever its type. */
static uint64_t read_key(const struct gguf *file, struct gguf_string key) {
    struct gguf_array array = {GGUF_U8, 0, NULL};
    struct gguf_string string = {"", 0};
    int64_t integer = 0;
    double number = 0;
    bool truth = false;
    char *name = calloc(key.len + 1, 1);
    if (!name) {
        exit(2);
    }
    memcpy(name, key.data, key.len);
    gguf_get_array(file, name, &array);
    gguf_get_string(file, name, &string);
    gguf_get_int(file, name, &integer);
    gguf_get_float(file, name, &number);
    gguf_get_bool(file, name, &truth);
    free(name);
    return read_array(&array) + sum_bytes(string.data, string.len) + (uint64_t)integer + (number > 0) + truth;
}

static uint64_t read_all(const struct gguf *file) {
    char text[80];
    uint64_t sum = gguf_bytes(file) + strlen(gguf_path(file));
    for (int i = 0; i < gguf_n_keys(file); i++) {
        sum += read_key(file, gguf_key_at(file, i));
        gguf_value_text(file, i, text, sizeof text);
        sum += strlen(text);
    }
    for (int i = 0; i < gguf_n_tensors(file); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(file, i);
        sum += sum_bytes(t->name.data, t->name.len) + strlen(tensor_type_name(t->type));
        sum += t->data ? sum_bytes(t->data, t->size) : 0;
    }
    return sum;
}

/* Bytes before the tensors' data in a file that is well-formed. */
static size_t metadata_bytes(const char *path) {
    struct error err = {0};
    struct gguf *file = gguf_open(path, GGUF_MAPPED, &err);
    if (!file) {
        fprintf(stderr, "%s\n", err.text);
        exit(2);
    }
    size_t data = 0;
    for (int i = 0; i < gguf_n_tensors(file); i++) {
        data += gguf_tensor_at(file, i)->size;
    }
    size_t bytes = gguf_bytes(file) - data;
    gguf_close(file);
    return bytes;
}

/* Complaints must be one line that names the file. */
static void check_error(const struct error *err, const char *path) {
    if (strncmp(err->text, path, strlen(path)) != 0 || strchr(err->text, '\n')) {
        fprintf(stderr, "%s: a bad error message: \"%s\"\n", path, err->text);
        exit(1);
    }
}

int main(int argc, char **argv) {
    char path[] = "/tmp/fuzz-gguf-XXXXXX";
    if (argc != 4) {
        fprintf(stderr, "usage: fuzz_gguf FILE COUNT SEED\n");
        return 2;
    }
    size_t whole_len;
    uint8_t *whole = fuzz_read(argv[1], &whole_len);
    uint8_t *copy = malloc(whole_len);
    size_t front = metadata_bytes(argv[1]);
    long count = strtol(argv[2], NULL, 10), accepted = 0;
    uint64_t seed = strtoull(argv[3], NULL, 10), sum = 0;
    int fd = mkstemp(path);
    if (!copy || fd < 0) {
        perror("fuzz_gguf");
        return 2;
    }
    close(fd);
    for (long i = 0; i < count; i++) {
        struct error err = {0};
        size_t len = whole_len;
        memcpy(copy, whole, whole_len);
        fuzz_damage(copy, &len, front, seed + (uint64_t)i);
        fuzz_write(path, copy, len);
        alarm(TIME_LIMIT);
        struct gguf *file = gguf_open(path, GGUF_MAPPED, &err);
        if (file) {
            accepted++;
            sum += read_all(file);
            gguf_close(file);
        } else {
            check_error(&err, path);
        }
        alarm(0);
    }
    unlink(path);
    free(whole);
    free(copy);
    printf("fuzz_gguf: %ld copies, %ld accepted, sum %016llx\n", count, accepted, (unsigned long long)sum);
    return 0;
}
