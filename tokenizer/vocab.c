#include "tokenizer/vocab.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#define TOKENS_KEY "tokenizer.ggml.tokens"
#define TYPES_KEY "tokenizer.ggml.token_type"

/* FNV-1a. */
uint32_t hash_text(const char *text, size_t len) {
    uint32_t hash = 2166136261u;
    for (size_t i = 0; i < len; i++) {
        hash = (hash ^ (unsigned char)text[i]) * 16777619u;
    }
    return hash ^ hash >> 15;
}

static void hash_table_add(struct hash_table *table, uint32_t hash, int index) {
    uint32_t i = hash & table->mask;
    while (table->slots[i].index >= 0) {
        i = (i + 1) & table->mask;
    }
    table->slots[i] = (struct slot){hash, index};
}

int hash_table_init(struct hash_table *table, const uint32_t *hashes, size_t stride, size_t n,
                    struct error *err) {
    size_t n_slots = 16;
    while (n_slots < 2 * n) {
        n_slots *= 2;
    }
    table->slots = malloc(n_slots * sizeof *table->slots);
    if (!table->slots) {
        return fail(err, "out of memory for a vocabulary of %zu entries", n);
    }
    memset(table->slots, 0xFF, n_slots * sizeof *table->slots); /* index -1 everywhere */
    table->mask = (uint32_t)(n_slots - 1);
    /* The slots are all over memory: ask for one while earlier entries are stored. */
    const size_t ahead = 16;
    const char *hash = (const char *)hashes;
    for (size_t i = 0; i < n; i++, hash += stride) {
        if (i + ahead < n) {
            __builtin_prefetch(&table->slots[*(const uint32_t *)(hash + ahead * stride) & table->mask], 1);
        }
        hash_table_add(table, *(const uint32_t *)hash, (int)i);
    }
    return 0;
}

int vocab_find(const struct vocab *vocab, const char *text, size_t len) {
    if (len > vocab->max_len) {
        return -1;
    }
    uint32_t hash = hash_text(text, len);
    const struct slot *slots = vocab->table.slots;
    for (uint32_t i = hash & vocab->table.mask; slots[i].index >= 0; i = (i + 1) & vocab->table.mask) {
        if (slots[i].hash == hash) {
            const struct token *token = &vocab->tokens[slots[i].index];
            if (token->len == len && memcmp(token->text, text, len) == 0) {
                return slots[i].index;
            }
        }
    }
    return -1;
}

static int read_types(struct vocab *vocab, const struct gguf *file, struct error *err) {
    struct gguf_array array;
    vocab->has_types = gguf_get_array(file, TYPES_KEY, &array);
    if (!vocab->has_types) {
        memset(vocab->types, TOKEN_NORMAL, (size_t)vocab->n);
        return 0;
    }
    if (array.type != GGUF_I32 && array.type != GGUF_U32) {
        return fail(err, "%s: %s is not an array of 32-bit integers", gguf_path(file), TYPES_KEY);
    }
    if (array.n != (size_t)vocab->n) {
        return fail(err, "%s: %s has %zu entries, but there are %d tokens", gguf_path(file), TYPES_KEY,
                    array.n, vocab->n);
    }
    for (int i = 0; i < vocab->n; i++) {
        int64_t type = gguf_array_int(&array, (size_t)i);
        if (type < 0 || type > TOKEN_BYTE) {
            return fail(err, "%s: %s has type %lld for token %d (known: 0 to %d)", gguf_path(file),
                        TYPES_KEY, (long long)type, i, TOKEN_BYTE);
        }
        vocab->types[i] = type ? (uint8_t)type : TOKEN_NORMAL;
    }
    return 0;
}

/* Is this a user-defined token with a space in it? */
static bool needs_escape(const struct vocab *vocab, int i) {
    const struct token *token = &vocab->tokens[i];
    return vocab->types[i] == TOKEN_USER_DEFINED && token->len > 0 && memchr(token->text, ' ', token->len);
}

/* Gives user-defined tokens "▁" (3 bytes) for each space. */
static int escape_user_defined(struct vocab *vocab, struct error *err) {
    size_t room = 0;
    for (int i = 0; i < vocab->n; i++) {
        if (needs_escape(vocab, i)) {
            room += 3 * (size_t)vocab->tokens[i].len;
        }
    }
    if (room == 0) {
        return 0;
    }
    vocab->escaped = malloc(room);
    if (!vocab->escaped) {
        return fail(err, "out of memory for the vocabulary");
    }
    char *out = vocab->escaped;
    for (int i = 0; i < vocab->n; i++) {
        struct token *token = &vocab->tokens[i];
        if (!needs_escape(vocab, i)) {
            continue;
        }
        char *begin = out;
        for (uint32_t j = 0; j < token->len; j++) {
            if (token->text[j] == ' ') {
                memcpy(out, "▁", 3);
                out += 3;
            } else {
                *out++ = token->text[j];
            }
        }
        token->text = begin;
        token->len = (uint32_t)(out - begin);
    }
    return 0;
}

int vocab_load(struct vocab *vocab, const struct gguf *file, bool escape, struct error *err) {
    struct gguf_array array;
    if (!gguf_get_array(file, TOKENS_KEY, &array) || array.type != GGUF_STRING) {
        return fail(err, "%s: %s is missing or not an array of strings: the file has no vocabulary",
                    gguf_path(file), TOKENS_KEY);
    }
    if (array.n == 0 || array.n > INT_MAX / 4) {
        return fail(err, "%s: %s has %zu entries", gguf_path(file), TOKENS_KEY, array.n);
    }
    vocab->n = (int)array.n;
    vocab->tokens = malloc(array.n * sizeof *vocab->tokens);
    vocab->types = malloc(array.n);
    if (!vocab->tokens || !vocab->types) {
        return fail(err, "out of memory for a vocabulary of %d tokens", vocab->n);
    }
    const uint8_t *cursor = array.data;
    for (int i = 0; i < vocab->n; i++) {
        struct gguf_string text = gguf_array_next(&array, &cursor);
        if (text.len > INT_MAX / 4) {
            return fail(err, "%s: %s: token %d has %zu bytes", gguf_path(file), TOKENS_KEY, i, text.len);
        }
        vocab->tokens[i] = (struct token){.text = text.data, .len = (uint32_t)text.len};
    }
    if (read_types(vocab, file, err) || (escape && escape_user_defined(vocab, err))) {
        return -1;
    }
    for (int i = 0; i < vocab->n; i++) {
        struct token *token = &vocab->tokens[i];
        token->hash = hash_text(token->text, token->len);
        if (token->len > vocab->max_len) {
            vocab->max_len = token->len;
        }
    }
    return hash_table_init(&vocab->table, &vocab->tokens[0].hash, sizeof vocab->tokens[0], array.n, err);
}

void vocab_free(struct vocab *vocab) {
    free(vocab->tokens);
    free(vocab->types);
    free(vocab->table.slots);
    free(vocab->escaped);
}

/* For sorting ids by text without a global variable: the text goes along. */
struct named {
    const struct token *token;
    int id;
};

static int compare_named(const void *a, const void *b) {
    const struct named *x = a, *y = b;
    size_t common = x->token->len < y->token->len ? x->token->len : y->token->len;
    int order = memcmp(x->token->text, y->token->text, common);
    if (order == 0) {
        order = (x->token->len > y->token->len) - (x->token->len < y->token->len);
    }
    return order != 0 ? order : (x->id > y->id) - (x->id < y->id);
}

int token_set_init(struct token_set *set, const struct vocab *vocab, unsigned types, struct error *err) {
    size_t n = 0;
    for (int i = 0; i < vocab->n; i++) {
        n += (types >> vocab->types[i] & 1) && vocab->tokens[i].len > 0;
    }
    struct named *names = malloc((n + 1) * sizeof *names);
    set->ids = malloc((n + 1) * sizeof *set->ids);
    if (!names || !set->ids) {
        free(names);
        return fail(err, "out of memory for %zu special tokens", n);
    }
    for (int i = 0; i < vocab->n; i++) {
        if ((types >> vocab->types[i] & 1) && vocab->tokens[i].len > 0) {
            names[set->n++] = (struct named){&vocab->tokens[i], i};
        }
    }
    qsort(names, n, sizeof *names, compare_named);
    for (int i = 0; i < set->n; i++) {
        set->ids[i] = names[i].id;
        set->first[(unsigned char)names[i].token->text[0] + 1]++;
    }
    for (int byte = 0; byte < 256; byte++) {
        set->first[byte + 1] += set->first[byte];
    }
    free(names);
    return 0;
}

void token_set_free(struct token_set *set) {
    free(set->ids);
}

/* The first of ids[low..high) whose byte at `depth` is at least `byte`; all of
 * them share the bytes before, and those that end there come first. */
static int lower_bound(const struct token_set *set, const struct vocab *vocab, int low, int high,
                       uint32_t depth, int byte) {
    while (low < high) {
        int middle = low + (high - low) / 2;
        const struct token *token = &vocab->tokens[set->ids[middle]];
        if (token->len <= depth || (unsigned char)token->text[depth] < byte) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

int token_set_match(const struct token_set *set, const struct vocab *vocab, const char *text, size_t len) {
    int low = set->first[(unsigned char)text[0]], high = set->first[(unsigned char)text[0] + 1];
    int best = -1;
    for (uint32_t depth = 1; low < high; depth++) {
        if (vocab->tokens[set->ids[low]].len == depth) {
            best = set->ids[low];
        }
        if (depth == len) {
            break;
        }
        int byte = (unsigned char)text[depth];
        low = lower_bound(set, vocab, low, high, depth, byte);
        high = lower_bound(set, vocab, low, high, depth, byte + 1);
    }
    return best;
}
