/* tokenizer.h - text to token ids and back, as the checkpoint's vocabulary says.
 *
 * Two families: byte-level BPE (tokenizer.ggml.model "gpt2": Llama 3, Qwen,
 * SmolLM, ...) and SentencePiece BPE ("llama": Llama 2, Mistral, Gemma,
 * Phi-3). Ids are those of the `tokenizers` and `sentencepiece` libraries for
 * the same vocabulary. Text is not Unicode-normalised: decoding gives back
 * the bytes that were encoded, valid UTF-8 or not.
 *
 * A tokenizer is immutable once loaded and may be shared by threads. It keeps
 * views into the file's mapping, so the file must outlive it. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "error.h"
#include "gguf.h"
#include "tokenizer/utf8.h"

struct tokenizer;

/* Reads the tokenizer.ggml.* keys; works on vocabulary-only files. NULL on
 * failure, with an error that names the key. */
struct tokenizer *tokenizer_load(const struct gguf *file, struct error *err);
void tokenizer_free(struct tokenizer *t);

int tokenizer_n_vocab(const struct tokenizer *t);
int tokenizer_bos(const struct tokenizer *t); /* -1: none */
int tokenizer_eos(const struct tokenizer *t); /* -1: none */

/* Does this token end the answer: EOS, <|im_end|>, <|eot_id|>, <end_of_turn>, ...? */
bool tokenizer_is_eog(const struct tokenizer *t, int id);

/* A growable list of token ids. Zero-initialise it; free with token_list_free(). */
struct token_list {
    int *ids;
    int n, cap;
};

/* Appends one id. -1 where memory runs out. */
int token_list_push(struct token_list *list, int id);
void token_list_free(struct token_list *list);

/* Appends the ids of text[0..len) to out. add_bos: begin with BOS (and end
 * with EOS) where the checkpoint asks for it. parse_special: control tokens
 * written out in the text ("<|im_start|>") become that token; user-defined
 * tokens always do. */
int tokenizer_encode(const struct tokenizer *t, const char *text, size_t len, bool add_bos,
                     bool parse_special, struct token_list *out, struct error *err);

/* The bytes that one token stands for; they may be part of a UTF-8 sequence,
 * so print them through a utf8_stream. Control tokens give none unless
 * `special`, then their name. Writes at most `size` bytes to buf and returns
 * how long the piece is; an id that is not in the vocabulary gives none. */
size_t tokenizer_piece(const struct tokenizer *t, int id, bool special, char *buf, size_t size);

/* Length of the longest piece, in bytes: a buffer of this size holds any. */
size_t tokenizer_max_piece(const struct tokenizer *t);
