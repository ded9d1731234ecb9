#include "tokenizer/spm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tokenizer/merge.h"
#include "tokenizer/utf8.h"

#define SCORES_KEY "tokenizer.ggml.scores"
#define UNKNOWN_KEY "tokenizer.ggml.unknown_token_id"

static const char space_mark[] = "▁"; /* U+2581 */
#define SPACE_MARK_LEN (sizeof space_mark - 1)

/* Orders floats as unsigned integers, the highest first. */
static uint32_t priority_of(float score) {
    uint32_t bits;
    memcpy(&bits, &score, sizeof bits);
    return bits & 0x80000000u ? bits : 0x7FFFFFFFu - bits;
}

static int load_priorities(struct spm *spm, const struct gguf *file, struct error *err) {
    struct gguf_array array;
    if (!gguf_get_array(file, SCORES_KEY, &array) || array.type != GGUF_F32) {
        return fail(err, "%s: %s is missing or not an array of float32", gguf_path(file), SCORES_KEY);
    }
    if (array.n != (size_t)spm->vocab->n) {
        return fail(err, "%s: %s has %zu entries, but there are %d tokens", gguf_path(file), SCORES_KEY,
                    array.n, spm->vocab->n);
    }
    spm->priorities = malloc(array.n * sizeof *spm->priorities);
    if (!spm->priorities) {
        return fail(err, "out of memory for %zu scores", array.n);
    }
    for (size_t i = 0; i < array.n; i++) {
        spm->priorities[i] = priority_of((float)gguf_array_float(&array, i));
    }
    return 0;
}

int spm_load(struct spm *spm, const struct vocab *vocab, const struct gguf *file, struct error *err) {
    spm->vocab = vocab;
    if (!vocab->has_types) {
        return fail(err, "%s: tokenizer.ggml.token_type is missing", gguf_path(file));
    }
    if (load_priorities(spm, file, err) || token_set_init(&spm->whole, vocab, 1 << TOKEN_USER_DEFINED, err)) {
        return -1;
    }
    for (int byte = 0; byte < 256; byte++) {
        char name[8];
        int id = vocab_find(vocab, name, (size_t)snprintf(name, sizeof name, "<0x%02X>", (unsigned)byte));
        spm->byte_ids[byte] = id >= 0 && vocab->types[id] == TOKEN_BYTE ? id : -1;
    }
    int64_t unknown = 0;
    if (gguf_get_int(file, UNKNOWN_KEY, &unknown) && (unknown < 0 || unknown >= vocab->n)) {
        return fail(err, "%s: %s is %lld, but there are %d tokens", gguf_path(file), UNKNOWN_KEY,
                    (long long)unknown, vocab->n);
    }
    spm->unknown = (int)unknown;
    spm->add_space_prefix = true;
    gguf_get_bool(file, "tokenizer.ggml.add_space_prefix", &spm->add_space_prefix);
    gguf_get_bool(file, "tokenizer.ggml.remove_extra_whitespaces", &spm->remove_extra_spaces);
    return 0;
}

void spm_free(struct spm *spm) {
    free(spm->priorities);
    token_set_free(&spm->whole);
}

/* The text as the model was trained on it, to be freed; its length in *n. */
static char *escape(const struct spm *spm, const char *text, size_t len, size_t *n) {
    if (spm->remove_extra_spaces) {
        while (len > 0 && *text == ' ') {
            text++;
            len--;
        }
    }
    char *escaped = malloc(SPACE_MARK_LEN * (len + 1));
    size_t used = 0;
    if (!escaped) {
        return NULL;
    }
    if (spm->add_space_prefix && len > 0) {
        memcpy(escaped, space_mark, SPACE_MARK_LEN);
        used = SPACE_MARK_LEN;
    }
    for (size_t i = 0; i < len; i++) {
        if (text[i] != ' ') {
            escaped[used++] = text[i];
        } else if (!spm->remove_extra_spaces || text[i - 1] != ' ') { /* text[0] is none then */
            memcpy(escaped + used, space_mark, SPACE_MARK_LEN);
            used += SPACE_MARK_LEN;
        }
    }
    while (spm->remove_extra_spaces && used >= SPACE_MARK_LEN &&
           memcmp(escaped + used - SPACE_MARK_LEN, space_mark, SPACE_MARK_LEN) == 0) {
        used -= SPACE_MARK_LEN;
    }
    *n = used;
    return escaped;
}

struct escaped_text {
    const struct spm *spm;
    const char *text;
};

/* Only normal tokens come about by merging, and user-defined ones stay whole. */
static bool find_pair(const void *context, const struct symbol *left, const struct symbol *right,
                      uint32_t *priority, int *merged) {
    const struct escaped_text *escaped = context;
    const struct vocab *vocab = escaped->spm->vocab;
    if ((left->id >= 0 && vocab->types[left->id] == TOKEN_USER_DEFINED) ||
        (right->id >= 0 && vocab->types[right->id] == TOKEN_USER_DEFINED)) {
        return false;
    }
    *merged = vocab_find(vocab, escaped->text + left->start, (size_t)left->len + right->len);
    if (*merged < 0 || vocab->types[*merged] != TOKEN_NORMAL) {
        return false;
    }
    *priority = escaped->spm->priorities[*merged];
    return true;
}

/* A symbol per character, or per user-defined token. */
static void add_symbols(const struct spm *spm, const char *text, size_t len, struct merge_work *work) {
    const struct vocab *vocab = spm->vocab;
    for (size_t i = 0, n; i < len; i += n) {
        int id = token_set_match(&spm->whole, vocab, text + i, len - i);
        if (id >= 0) {
            n = vocab->tokens[id].len;
        } else {
            utf8_next(text + i, len - i, &n);
            id = vocab_find(vocab, text + i, n);
            id = id >= 0 && vocab->types[id] == TOKEN_NORMAL ? id : -1;
        }
        merge_add(work, id, i, n);
    }
}

/* Spells bytes[0..n), which are no token, or gives the unknown token: one for several in a row. */
static int push_unknown(const struct spm *spm, const char *bytes, size_t n, bool after_unknown,
                        struct token_list *out) {
    if (spm->byte_ids[0] < 0) {
        return after_unknown ? 0 : token_list_push(out, spm->unknown);
    }
    for (size_t i = 0; i < n; i++) {
        int id = spm->byte_ids[(unsigned char)bytes[i]];
        if (token_list_push(out, id >= 0 ? id : spm->unknown)) {
            return -1;
        }
    }
    return 0;
}

static int push_symbols(const struct spm *spm, const char *text, const struct merge_work *work,
                        struct token_list *out) {
    bool after_unknown = false;
    for (int i = work->n > 0 ? 0 : -1; i >= 0; i = work->symbols[i].next) {
        const struct symbol *symbol = &work->symbols[i];
        int status = symbol->id >= 0
            ? token_list_push(out, symbol->id)
            : push_unknown(spm, text + symbol->start, symbol->len, after_unknown, out);
        if (status) {
            return -1;
        }
        after_unknown = symbol->id < 0;
    }
    return 0;
}

int spm_encode(const struct spm *spm, const char *text, size_t len, struct token_list *out,
               struct error *err) {
    size_t n;
    char *escaped = escape(spm, text, len, &n);
    struct merge_work work = {0};
    if (!escaped) {
        return fail(err, "out of memory for tokenizing %zu bytes", len);
    }
    int status = merge_start(&work, n, err);
    if (!status) {
        add_symbols(spm, escaped, n, &work);
        merge_all(&work, find_pair, &(struct escaped_text){spm, escaped});
        status = push_symbols(spm, escaped, &work, out);
        if (status) {
            fail(err, "out of memory for the tokens");
        }
    }
    merge_free(&work);
    free(escaped);
    return status;
}

size_t spm_spell(const struct spm *spm, int id, char *buf, size_t size) {
    const struct token *token = &spm->vocab->tokens[id];
    if (spm->vocab->types[id] == TOKEN_BYTE && token->len == 6 && memcmp(token->text, "<0x", 3) == 0) {
        const char digits[3] = {token->text[3], token->text[4], '\0'};
        if (size > 0) {
            buf[0] = (char)strtol(digits, NULL, 16);
        }
        return 1;
    }
    size_t n = 0;
    for (uint32_t i = 0; i < token->len; n++) {
        bool space = token->len - i >= SPACE_MARK_LEN &&
                     memcmp(token->text + i, space_mark, SPACE_MARK_LEN) == 0;
        if (n < size) {
            buf[n] = space ? ' ' : token->text[i];
        }
        i += space ? SPACE_MARK_LEN : 1;
    }
    return n;
}
