/* spm.h - SentencePiece's BPE: the tokenizer of Llama 2, Mistral, Gemma and Phi-3.
 *
 * Spaces become "▁", each character is a symbol, and the two neighbours that
 * make the token with the highest score are joined until none do. What is no
 * token then is spelled with byte tokens "<0x41>". */
#pragma once

#include "gguf.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/vocab.h"

struct spm {
    const struct vocab *vocab;
    uint32_t *priorities;         /* [n_vocab]: smaller for a higher score */
    struct token_set whole;       /* user-defined tokens: never split or joined */
    int byte_ids[256];            /* "<0x00>" to "<0xFF>", or -1 */
    int unknown;                  /* for a character without token and bytes, or -1 */
    bool add_space_prefix;
    bool remove_extra_spaces;     /* at both ends, and but one of several */
};

/* Reads tokenizer.ggml.scores, unknown_token_id, add_space_prefix and
 * remove_extra_whitespaces. */
int spm_load(struct spm *spm, const struct vocab *vocab, const struct gguf *file, struct error *err);
void spm_free(struct spm *spm);

/* Appends the tokens of text[0..len), which holds no control tokens. It is
 * the beginning of a text, or follows a control token. */
int spm_encode(const struct spm *spm, const char *text, size_t len, struct token_list *out,
               struct error *err);

/* The bytes that a token stands for: at most `size` of them go to buf. Returns how many there are. */
size_t spm_spell(const struct spm *spm, int id, char *buf, size_t size);
