/* bpe.h - byte-level BPE: GPT-2's tokenizer and its descendants.
 *
 * Text is split into words (pretokenize.h), each byte becomes a token, and the
 * file's list of merges says which neighbours to join, in which order. Tokens
 * are spelled with a printable character for each byte, "Ġ" for a space. */
#pragma once

#include "gguf.h"
#include "tokenizer/merge.h"
#include "tokenizer/pretokenize.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/vocab.h"

struct merge_rule {
    const char *text;          /* "left right", in the mapping */
    uint32_t left_len, len;
    uint32_t hash;             /* of the two tokens */
    int merged;                /* the token that they make */
};

struct bpe {
    const struct vocab *vocab;
    const struct pre_tokenizer *pre;
    struct merge_rule *rules;  /* [n]; the index is the rank */
    struct hash_table pairs;   /* hashes of the two tokens -> rank */
    int byte_ids[256];         /* token of each byte, or -1 */
};

/* Reads tokenizer.ggml.pre and tokenizer.ggml.merges. */
int bpe_load(struct bpe *bpe, const struct vocab *vocab, const struct gguf *file, struct error *err);
void bpe_free(struct bpe *bpe);

/* Appends the tokens of text[0..len), which holds no special ones. A byte that
 * the vocabulary has no token for is left out, as `tokenizers` does. */
int bpe_encode(const struct bpe *bpe, const char *text, size_t len, struct token_list *out,
               struct error *err);

/* The bytes that a token's text spells: at most `size` of them go to buf. Returns how many there are. */
size_t bpe_spell(const char *text, size_t len, char *buf, size_t size);
