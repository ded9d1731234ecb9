/* dense.h - the parts of dense attention that other modes use too. */
#pragma once

#include "attention.h"

/* First phase of most modes: applies RoPE to q and k, multiplies q by the
 * softmax scale (both in place), and writes the batch's keys and values behind
 * the entries of every KV head, which kv_advance() will make valid. Room must
 * be reserved. Called by all workers; doesn't end with a barrier. */
void dense_store(struct attn_layer *layer, const struct attn_batch *b, struct worker *w);

/* The other phases: token i of the batch attends to the entries [0, n + i] of
 * its KV heads, where n entries are there before the batch. Writes b->out and
 * advances the cache. Called by all workers after a barrier; ends with one. */
void dense_attend(struct attn_layer *layer, const struct attn_batch *b, struct worker *w);
