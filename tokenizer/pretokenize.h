/* pretokenize.h - splitting text into the words within which byte-level BPE merges.
 *
 * Checkpoints name their rules in tokenizer.ggml.pre; the rules are regular
 * expressions in the reference implementations, written out by hand here. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

struct pre_tokenizer;

/* The rules of this name (of any length; not NUL-terminated), or NULL. */
const struct pre_tokenizer *pre_tokenizer_find(const char *name, size_t len);

/* Lists all names, separated by spaces, as far as they fit. */
void pre_tokenizer_names(char *buf, size_t size);

/* Does a word that is a token stay whole, whatever the merges? */
bool pre_tokenizer_ignores_merges(const struct pre_tokenizer *pre);

/* Do checkpoints with these rules want BOS, where they don't say? */
bool pre_tokenizer_adds_bos(const struct pre_tokenizer *pre);

/* Called with each word, text[begin..end). Nonzero stops. */
typedef int (*word_fn)(void *context, const char *text, size_t begin, size_t end);

/* Splits text[0..len) into words that add up to it. Returns what `word` did. */
int pre_tokenize(const struct pre_tokenizer *pre, const char *text, size_t len, word_fn word, void *context);
