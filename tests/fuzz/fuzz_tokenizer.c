/* fuzz_tokenizer.c - loads damaged copies of a vocabulary and tokenizes random
 * bytes with those that are accepted.
 *
 *     fuzz_tokenizer FILE COUNT SEED
 *
 * Copy i is damaged with the seed SEED + i. It's written to a temporary file,
 * which a crash (or a hang, after 20 seconds) leaves behind. Build it with
 * -fsanitize=address,undefined and heap_mmap.c. */
#include <unistd.h>

#include "../../gguf.h"
#include "../../tokenizer/chat.h"
#include "../../tokenizer/tokenizer.h"
#include "fuzz.h"

#define TIME_LIMIT 20 /* seconds for one copy */

/* Random bytes, mostly printable, with pieces of special tokens between. */
static size_t random_text(uint64_t *state, char *out, size_t size) {
    static const char *const pieces[] = {"<s>", "</s>", "<|im_end|>", " ", "  ", "\n", "the", "é", "中", "'s", "12"};
    size_t n = 0, wanted = fuzz_below(state, size - 16);
    while (n < wanted) {
        const char *piece = pieces[fuzz_below(state, sizeof pieces / sizeof pieces[0])];
        if (fuzz_below(state, 2)) {
            memcpy(out + n, piece, strlen(piece));
            n += strlen(piece);
        } else {
            out[n++] = (char)(fuzz_below(state, 4) ? 32 + fuzz_below(state, 95) : fuzz_below(state, 256));
        }
    }
    return n;
}

/* Every token id must be in the vocabulary and have a piece no longer than the longest. */
static void check_tokens(const struct tokenizer *t, const struct token_list *list, char *piece) {
    for (int i = 0; i < list->n; i++) {
        int id = list->ids[i];
        if (id < 0 || id >= tokenizer_n_vocab(t) ||
            tokenizer_piece(t, id, true, piece, tokenizer_max_piece(t)) > tokenizer_max_piece(t)) {
            fprintf(stderr, "token %d is wrong\n", id);
            abort();
        }
    }
}

static void use_tokenizer(const struct tokenizer *t, uint64_t *state) {
    char text[512], *piece = malloc(tokenizer_max_piece(t) + 1);
    if (!piece) {
        exit(2);
    }
    for (int i = 0; i < 4; i++) {
        struct token_list list = {0};
        struct error err;
        size_t len = random_text(state, text, sizeof text);
        if (tokenizer_encode(t, text, len, true, i % 2 == 0, &list, &err) == 0) {
            check_tokens(t, &list, piece);
        }
        token_list_free(&list);
    }
    free(piece);
}

static void use_chat(const struct gguf *file) {
    struct error err;
    struct chat_format *format = chat_detect(file, &err);
    if (format) {
        free(chat_render_turn(format, NULL, "Hi", true, &err));
        free(chat_render_turn(format, NULL, "So", false, &err));
    }
    chat_format_free(format);
}

/* Complaints must be one line that names the file. */
static void check_error(const struct error *err, const char *path) {
    if (strncmp(err->text, path, strlen(path)) != 0 || strchr(err->text, '\n')) {
        fprintf(stderr, "%s: a bad error message: \"%s\"\n", path, err->text);
        exit(1);
    }
}

int main(int argc, char **argv) {
    char path[] = "/tmp/fuzz-tokenizer-XXXXXX";
    if (argc != 4) {
        fprintf(stderr, "usage: fuzz_tokenizer FILE COUNT SEED\n");
        return 2;
    }
    size_t whole_len;
    uint8_t *whole = fuzz_read(argv[1], &whole_len), *copy = malloc(whole_len);
    long count = strtol(argv[2], NULL, 10), accepted = 0;
    uint64_t seed = strtoull(argv[3], NULL, 10), state = seed * 2 + 1;
    int fd = mkstemp(path);
    if (!copy || fd < 0) {
        perror("fuzz_tokenizer");
        return 2;
    }
    close(fd);
    for (long i = 0; i < count; i++) {
        struct error err = {.text = ""};
        size_t len = whole_len;
        memcpy(copy, whole, whole_len);
        fuzz_damage(copy, &len, whole_len, seed + (uint64_t)i);
        fuzz_write(path, copy, len);
        alarm(TIME_LIMIT);
        struct gguf *file = gguf_open(path, GGUF_MAPPED, &err);
        struct tokenizer *t = file ? tokenizer_load(file, &err) : NULL;
        if (t) {
            accepted++;
            use_tokenizer(t, &state);
        } else {
            check_error(&err, path);
        }
        if (file) {
            use_chat(file);
            gguf_close(file);
        }
        tokenizer_free(t);
        alarm(0);
    }
    unlink(path);
    free(whole);
    free(copy);
    printf("fuzz_tokenizer: %ld copies, %ld accepted\n", count, accepted);
    return 0;
}
