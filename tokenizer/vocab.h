/* vocab.h - the tokens of a vocabulary, and finding them by their text. */
#pragma once

#include <stdint.h>

#include "error.h"
#include "gguf.h"

/* tokenizer.ggml.token_type */
enum token_type {
    TOKEN_NORMAL = 1,
    TOKEN_UNKNOWN = 2,
    TOKEN_CONTROL = 3,
    TOKEN_USER_DEFINED = 4,
    TOKEN_UNUSED = 5,
    TOKEN_BYTE = 6,
};

struct token {
    const char *text; /* in the file's mapping, or in vocab.escaped */
    uint32_t len;
    uint32_t hash;    /* hash_text() of it */
};

/* An entry of a hash table with open addressing. */
struct slot {
    uint32_t hash;
    int32_t index; /* -1: free */
};

struct hash_table {
    struct slot *slots;
    uint32_t mask; /* number of slots - 1; at most half of them are taken */
};

struct vocab {
    int n;
    struct token *tokens;    /* [n] */
    uint8_t *types;          /* [n], enum token_type */
    bool has_types;          /* does the file give them? If not, all are normal */
    uint32_t max_len;        /* of the longest token's text, in bytes */
    struct hash_table table; /* text -> id */
    char *escaped;           /* texts that are not as in the file */
};

uint32_t hash_text(const char *text, size_t len);

/* A table of the entries 0 to n - 1, whose hashes are `stride` bytes apart. */
int hash_table_init(struct hash_table *table, const uint32_t *hashes, size_t stride, size_t n,
                    struct error *err);

/* Reads tokenizer.ggml.tokens and token_type. escape: user-defined tokens get
 * "▁" for their spaces, as SentencePiece matches them in escaped text. */
int vocab_load(struct vocab *vocab, const struct gguf *file, bool escape, struct error *err);
void vocab_free(struct vocab *vocab);

/* The token with this text, or -1. Of several, the first. */
int vocab_find(const struct vocab *vocab, const char *text, size_t len);

/* A set of tokens that can be looked for in a text, all at once. */
struct token_set {
    int *ids;       /* [n], sorted by text */
    int n;
    int first[257]; /* those that begin with byte b are ids[first[b]..first[b + 1]) */
};

/* The tokens with a text whose type is one of `types` (1 << enum token_type, or'ed). */
int token_set_init(struct token_set *set, const struct vocab *vocab, unsigned types, struct error *err);
void token_set_free(struct token_set *set);

/* The longest token of the set that text[0..len) begins with, or -1. */
int token_set_match(const struct token_set *set, const struct vocab *vocab, const char *text, size_t len);
