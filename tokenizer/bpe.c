#include "tokenizer/bpe.h"

#include <stdlib.h>
#include <string.h>

#include "tokenizer/utf8.h"

#define MERGES_KEY "tokenizer.ggml.merges"
#define PRE_KEY "tokenizer.ggml.pre"

/* Bytes that are printable in Latin-1 stand for themselves. */
static bool is_printable(int byte) {
    return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte != 0xAD);
}

/* GPT-2's alphabet: the other 68 bytes are U+0100, U+0101, ... in order. */
static uint32_t byte_to_char(int byte) {
    if (is_printable(byte)) {
        return (uint32_t)byte;
    }
    return 0x100u + (uint32_t)(byte <= ' ' ? byte : byte <= 0xA0 ? byte - 0x7F + 33 : 67);
}

/* The inverse, or -1. */
static int char_to_byte(uint32_t c) {
    if (c < 0x100) {
        return is_printable((int)c) ? (int)c : -1;
    }
    c -= 0x100;
    return c <= 32 ? (int)c : c <= 66 ? (int)c - 33 + 0x7F : c == 67 ? 0xAD : -1;
}

size_t bpe_spell(const char *text, size_t len, char *buf, size_t size) {
    size_t n = 0, char_len;
    for (size_t i = 0; i < len; i += char_len) {
        int byte = char_to_byte(utf8_next(text + i, len - i, &char_len));
        if (byte < 0) { /* not spelled so: the text is meant as it is */
            memcpy(buf, text, len < size ? len : size);
            return len;
        }
        if (n < size) {
            buf[n] = (char)byte;
        }
        n++;
    }
    return n;
}

static uint32_t hash_pair(uint32_t left, uint32_t right) {
    uint32_t hash = left * 0x9E3779B1u + (right << 13 | right >> 19) * 0x85EBCA6Bu;
    return hash ^ hash >> 15;
}

/* The token spelled by a rule's two parts, or -1. Rules are mostly in the order
 * of the tokens that they make, so `previous`, what the last one made, or the
 * token behind it saves most look-ups. `buf` has room for the longest token. */
static int find_merged(const struct vocab *vocab, const struct merge_rule *rule, int previous, char *buf) {
    const char *right = rule->text + rule->left_len + 1;
    size_t right_len = rule->len - rule->left_len - 1, len = rule->len - 1;
    if (len > vocab->max_len) {
        return -1;
    }
    for (int id = previous < 0 ? 0 : previous; id <= previous + 1 && id < vocab->n; id++) {
        const struct token *token = &vocab->tokens[id];
        if (token->len == len && memcmp(token->text, rule->text, rule->left_len) == 0 &&
            memcmp(token->text + rule->left_len, right, right_len) == 0) {
            return id;
        }
    }
    memcpy(buf, rule->text, rule->left_len);
    memcpy(buf + rule->left_len, right, right_len);
    return vocab_find(vocab, buf, len);
}

/* Takes "left right" apart. */
static int split_rule(struct merge_rule *rule, struct gguf_string text, size_t i, const struct gguf *file,
                      struct error *err) {
    const char *space = text.len >= 3 ? memchr(text.data + 1, ' ', text.len - 2) : NULL;
    if (!space || text.len > UINT32_MAX) {
        return fail(err, "%s: %s: entry %zu is not two tokens with a space between", gguf_path(file),
                    MERGES_KEY, i);
    }
    rule->text = text.data;
    rule->len = (uint32_t)text.len;
    rule->left_len = (uint32_t)(space - text.data);
    rule->hash = hash_pair(hash_text(rule->text, rule->left_len),
                           hash_text(space + 1, rule->len - rule->left_len - 1));
    return 0;
}

/* Reads the n merges of the array into bpe->rules. `buf` has room for the longest token. */
static int read_rules(struct bpe *bpe, const struct gguf_array *array, char *buf, const struct gguf *file,
                      struct error *err) {
    const uint8_t *cursor = array->data;
    int previous = -1;
    for (size_t i = 0; i < array->n; i++) {
        struct merge_rule *rule = &bpe->rules[i];
        if (split_rule(rule, gguf_array_next(array, &cursor), i, file, err)) {
            return -1;
        }
        rule->merged = previous = find_merged(bpe->vocab, rule, previous, buf);
        if (previous < 0) {
            char quoted[64];
            gguf_quote((struct gguf_string){rule->text, rule->len}, quoted, sizeof quoted);
            return fail(err, "%s: %s: entry %zu, %s, makes a token that the vocabulary doesn't have",
                        gguf_path(file), MERGES_KEY, i, quoted);
        }
    }
    return 0;
}

static int load_merges(struct bpe *bpe, const struct gguf *file, struct error *err) {
    struct gguf_array array;
    if (!gguf_get_array(file, MERGES_KEY, &array) || array.type != GGUF_STRING) {
        return fail(err, "%s: %s is missing or not an array of strings", gguf_path(file), MERGES_KEY);
    }
    if (array.n > INT32_MAX / 4) {
        return fail(err, "%s: %s has %zu entries", gguf_path(file), MERGES_KEY, array.n);
    }
    char *buf = malloc((size_t)bpe->vocab->max_len + 1);
    bpe->rules = malloc((array.n + 1) * sizeof *bpe->rules);
    int status = buf && bpe->rules ? read_rules(bpe, &array, buf, file, err)
                                   : fail(err, "out of memory for %zu merges", array.n);
    free(buf);
    if (status) {
        return -1;
    }
    return hash_table_init(&bpe->pairs, &bpe->rules[0].hash, sizeof bpe->rules[0], array.n, err);
}

/* A file without the key was made before there were rules to choose from. */
static int find_pre_tokenizer(struct bpe *bpe, const struct gguf *file, struct error *err) {
    struct gguf_string name = {"default", strlen("default")};
    gguf_get_string(file, PRE_KEY, &name);
    bpe->pre = pre_tokenizer_find(name.data, name.len);
    if (bpe->pre) {
        return 0;
    }
    char quoted[64], known[400];
    gguf_quote(name, quoted, sizeof quoted);
    pre_tokenizer_names(known, sizeof known);
    return fail(err, "%s: %s %s is not supported (known: %s)", gguf_path(file), PRE_KEY, quoted, known);
}

int bpe_load(struct bpe *bpe, const struct vocab *vocab, const struct gguf *file, struct error *err) {
    bpe->vocab = vocab;
    if (find_pre_tokenizer(bpe, file, err) || load_merges(bpe, file, err)) {
        return -1;
    }
    for (int byte = 0; byte < 256; byte++) {
        char spelled[4];
        bpe->byte_ids[byte] = vocab_find(vocab, spelled, utf8_write(byte_to_char(byte), spelled));
    }
    return 0;
}

void bpe_free(struct bpe *bpe) {
    free(bpe->rules);
    free(bpe->pairs.slots);
}

/* The rank is the priority. */
static bool find_pair(const void *context, const struct symbol *left, const struct symbol *right,
                      uint32_t *priority, int *merged) {
    const struct bpe *bpe = context;
    const struct token *l = &bpe->vocab->tokens[left->id], *r = &bpe->vocab->tokens[right->id];
    uint32_t hash = hash_pair(l->hash, r->hash);
    const struct slot *slots = bpe->pairs.slots;
    for (uint32_t i = hash & bpe->pairs.mask; slots[i].index >= 0; i = (i + 1) & bpe->pairs.mask) {
        if (slots[i].hash != hash) {
            continue;
        }
        const struct merge_rule *rule = &bpe->rules[slots[i].index];
        if (rule->left_len == l->len && rule->len == l->len + 1 + r->len &&
            memcmp(rule->text, l->text, l->len) == 0 &&
            memcmp(rule->text + l->len + 1, r->text, r->len) == 0) {
            *priority = (uint32_t)slots[i].index;
            *merged = rule->merged;
            return true;
        }
    }
    return false;
}

/* What encoding needs besides the tokenizer. */
struct encoding {
    const struct bpe *bpe;
    struct merge_work work;
    char *spelled; /* room for the longest token */
    struct token_list *out;
    struct error *err;
};

static int emit(struct encoding *e, int id) {
    return token_list_push(e->out, id) ? fail(e->err, "out of memory for the tokens") : 0;
}

/* The token that is this whole word, or -1. */
static int find_word(const struct encoding *e, const char *word, size_t len) {
    size_t n = 0;
    for (size_t i = 0; i < len; i++) {
        if (n + 2 > e->bpe->vocab->max_len + 1) {
            return -1;
        }
        n += utf8_write(byte_to_char((unsigned char)word[i]), e->spelled + n);
    }
    int id = vocab_find(e->bpe->vocab, e->spelled, n);
    return id >= 0 && e->bpe->vocab->types[id] != TOKEN_CONTROL ? id : -1;
}

static int encode_word(void *context, const char *text, size_t begin, size_t end) {
    struct encoding *e = context;
    if (pre_tokenizer_ignores_merges(e->bpe->pre)) {
        int id = find_word(e, text + begin, end - begin);
        if (id >= 0) {
            return emit(e, id);
        }
    }
    if (merge_start(&e->work, end - begin, e->err)) {
        return -1;
    }
    for (size_t i = begin; i < end; i++) {
        int id = e->bpe->byte_ids[(unsigned char)text[i]];
        if (id >= 0) {
            merge_add(&e->work, id, i, 1);
        }
    }
    merge_all(&e->work, find_pair, e->bpe);
    for (int i = e->work.n > 0 ? 0 : -1; i >= 0; i = e->work.symbols[i].next) {
        if (emit(e, e->work.symbols[i].id)) {
            return -1;
        }
    }
    return 0;
}

int bpe_encode(const struct bpe *bpe, const char *text, size_t len, struct token_list *out,
               struct error *err) {
    struct encoding e = {.bpe = bpe, .out = out, .err = err};
    e.spelled = malloc((size_t)bpe->vocab->max_len + 3);
    if (!e.spelled) {
        return fail(err, "out of memory for the longest token");
    }
    int status = pre_tokenize(bpe->pre, text, len, encode_word, &e);
    merge_free(&e.work);
    free(e.spelled);
    return status;
}
