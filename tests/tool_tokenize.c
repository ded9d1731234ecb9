/* tool_tokenize.c - tokenizes many strings with one load of the vocabulary, for test_tokenizer.py.
 *
 *     tool_tokenize MODEL ids|text [bos] [special] < strings > result
 *
 * Strings come as a 32-bit little-endian length and that many bytes. "ids"
 * gives a line of token ids for each, "text" the decoded text of these ids, in
 * the form of the input: every token goes through a utf8_stream. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gguf.h"
#include "tokenizer/tokenizer.h"

static void print_ids(const struct token_list *list) {
    for (int i = 0; i < list->n; i++) {
        printf(i > 0 ? " %d" : "%d", list->ids[i]);
    }
    printf("\n");
}

/* Returns -1 where memory runs out. */
static int print_text(const struct tokenizer *t, const struct token_list *list, bool special) {
    size_t max_piece = tokenizer_max_piece(t), n = 0;
    char *piece = malloc(max_piece + 1);
    char *text = malloc(UTF8_STREAM_ROOM(max_piece * (size_t)list->n));
    if (!piece || !text) {
        free(piece);
        free(text);
        return -1;
    }
    struct utf8_stream stream = {0};
    for (int i = 0; i < list->n; i++) {
        size_t len = tokenizer_piece(t, list->ids[i], special, piece, max_piece);
        n += utf8_stream_push(&stream, piece, len, text + n);
    }
    n += utf8_stream_flush(&stream, text + n);
    uint32_t size = (uint32_t)n;
    fwrite(&size, sizeof size, 1, stdout);
    fwrite(text, 1, n, stdout);
    free(piece);
    free(text);
    return 0;
}

static int tokenize_all(const struct tokenizer *t, bool as_text, bool bos, bool special, struct error *err) {
    uint32_t len;
    while (fread(&len, sizeof len, 1, stdin) == 1) {
        char *text = malloc((size_t)len + 1);
        if (!text || fread(text, 1, len, stdin) != len) {
            free(text);
            return fail(err, "standard input: no string of %u bytes", len);
        }
        struct token_list list = {0};
        int status = tokenizer_encode(t, text, len, bos, special, &list, err);
        if (!status && as_text) {
            status = print_text(t, &list, special) ? fail(err, "out of memory") : 0;
        } else if (!status) {
            print_ids(&list);
        }
        token_list_free(&list);
        free(text);
        if (status) {
            return -1;
        }
    }
    return 0;
}

int main(int argc, char **argv) {
    struct error err = {.text = ""};
    bool bos = false, special = false;
    for (int i = 3; i < argc; i++) {
        bos = bos || strcmp(argv[i], "bos") == 0;
        special = special || strcmp(argv[i], "special") == 0;
    }
    struct gguf *file = argc > 2 ? gguf_open(argv[1], GGUF_MAPPED, &err) : NULL;
    struct tokenizer *t = file ? tokenizer_load(file, &err) : NULL;
    int status = t ? tokenize_all(t, strcmp(argv[2], "text") == 0, bos, special, &err) : -1;
    if (status) {
        fprintf(stderr, "%s\n", argc > 2 ? err.text : "usage: tool_tokenize MODEL ids|text [bos] [special]");
    }
    tokenizer_free(t);
    if (file) {
        gguf_close(file);
    }
    return status != 0;
}
