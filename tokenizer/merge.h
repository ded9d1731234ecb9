/* merge.h - merging neighbouring symbols, the best pair first: what BPE does.
 *
 * Sennrich et al., "Neural Machine Translation of Rare Words with Subword
 * Units" (2016). Pairs wait in a heap, so n symbols take O(n log n). */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"

/* A piece of the text, text[start..start + len); merged into its left neighbour if len is 0. */
struct symbol {
    int id; /* token, or -1 */
    uint32_t start, len;
    int prev, next;    /* -1: none */
    int merged;        /* the token that it makes with `next`, or -1 */
    uint32_t priority; /* of that */
};

/* Work space, reused from word to word. Zero-initialise it. */
struct merge_work {
    struct symbol *symbols; /* [n] */
    uint64_t *heap;         /* [n_heap]: priority << 32 | left symbol; the smallest is on top */
    size_t n, n_heap, cap;
};

/* Drops all symbols and makes room for `cap` new ones. */
int merge_start(struct merge_work *work, size_t cap, struct error *err);
void merge_add(struct merge_work *work, int id, size_t start, size_t len);
void merge_free(struct merge_work *work);

/* Can the two become one? Then into which token, and how soon: the lowest
 * priority goes first, the leftmost pair among equals. */
typedef bool (*pair_fn)(const void *context, const struct symbol *left, const struct symbol *right,
                        uint32_t *priority, int *merged);

/* Merges until no pair can. The symbols left are those reached from the first by `next`. */
void merge_all(struct merge_work *work, pair_fn pair, const void *context);
