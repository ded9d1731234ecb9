/* sampler.h - from logits to the next token. */
#pragma once

#include <stdint.h>

#include "error.h"

struct sampler_options {
    float temp;            /* 0: greedy */
    int top_k;             /* keep the k most likely tokens; 0: all */
    float top_p;           /* then the smallest set with at least this probability; 1: all */
    float min_p;           /* then those at least this likely relative to the best; 0: all */
    float repeat_penalty;  /* divides positive logits of recent tokens, multiplies negative ones; 1: off */
    uint64_t seed;
};

#define SAMPLER_RECENT 64  /* tokens that the repetition penalty looks back on, as in llama.cpp */

struct candidate {
    int id;
    float logit, p;
};

struct sampler {
    struct sampler_options options;
    uint64_t rng;
    int n_vocab;
    struct candidate *candidates;       /* [n_vocab] */
    float *penalised;                   /* [n_vocab] logits after the penalty */
    int recent[SAMPLER_RECENT];         /* ring of the latest tokens */
    int n_recent;
};

int sampler_init(struct sampler *s, const struct sampler_options *options, int n_vocab, struct error *err);
void sampler_free(struct sampler *s);

/* Tells the sampler of a token of the prompt or of one that was chosen. */
void sampler_accept(struct sampler *s, int token);

/* The next token, or -1 where the best logit is no number. Filters apply in llama.cpp's order: penalty, top-k, top-p, min-p, temperature. */
int sampler_sample(struct sampler *s, const float *logits);
