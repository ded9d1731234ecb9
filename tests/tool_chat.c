/* tool_chat.c - renders a conversation turn by turn, for test_chat.py.
 *
 *     tool_chat MODEL [SYSTEM] < strings
 *
 * Strings come as in tool_tokenize.c: what the user says, an answer, what the
 * user says next, ... The turns and answers are written one after the other. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "gguf.h"
#include "tokenizer/chat.h"

/* The next string from standard input, to be freed, or NULL at its end. */
static char *read_string(void) {
    uint32_t len;
    if (fread(&len, sizeof len, 1, stdin) != 1) {
        return NULL;
    }
    char *text = calloc((size_t)len + 1, 1);
    if (text && fread(text, 1, len, stdin) != len) {
        free(text);
        return NULL;
    }
    return text;
}

static int render_all(const struct chat_format *format, const char *system, struct error *err) {
    char *message;
    for (int i = 0; (message = read_string()); i++) {
        char *turn = i % 2 == 0 ? chat_render_turn(format, system, message, i == 0, err) : NULL;
        if (i % 2 == 0 && !turn) {
            free(message);
            return -1;
        }
        fputs(turn ? turn : message, stdout);
        free(turn);
        free(message);
    }
    return 0;
}

int main(int argc, char **argv) {
    struct error err = {.text = "usage: tool_chat MODEL [SYSTEM]"};
    struct gguf *file = argc > 1 ? gguf_open(argv[1], GGUF_MAPPED, &err) : NULL;
    struct chat_format *format = file ? chat_detect(file, &err) : NULL;
    int status = format ? render_all(format, argc > 2 ? argv[2] : NULL, &err) : -1;
    if (status) {
        fprintf(stderr, "%s\n", err.text);
    }
    chat_format_free(format);
    if (file) {
        gguf_close(file);
    }
    return status != 0;
}
