/* evict_snapkv.h - SnapKV's scores, which other policies share out differently. */
#pragma once

#include "evict.h"

struct snapkv_options {
    struct evict_options common;
    int window;  /* newest queries of the prompt, which vote */
    int kernel;  /* entries that a vote is averaged over: an odd number */
};

#define SNAPKV_OPTIONS                                                                                       \
    EVICT_OPTIONS(0),                                                                                        \
    {"window", PARAM_INT, offsetof(struct snapkv_options, window), 64, 1, 1 << 20, NULL, NULL,               \
     "newest tokens of the prompt, whose attention counts; they stay"},                                      \
    {"kernel", PARAM_INT, offsetof(struct snapkv_options, kernel), 5, 1, 1 << 20, NULL, NULL,                \
     "neighbours that attention is averaged over, an odd number"}

/* The members of struct evict_policy. */
int snapkv_check(const void *options, struct error *err);
size_t snapkv_state_bytes(const struct evict *e);
void snapkv_observe(struct evict_layer *l, const struct evict_batch *b, bool due, struct worker *w);
void snapkv_score(struct evict_layer *l, int head, int n, float *scores);
