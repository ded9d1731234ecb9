/* options.h - the command line. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "../error.h"

#define DEFAULT_MODEL "models/attn-3m.gguf"

struct options {
    const char *model, *adapter;
    const char *prompt, *prompt_file, *ids;
    int n_predict, n_ctx, n_threads, n_batch;   /* n_ctx and n_threads: 0 to choose */
    float temp, top_p, min_p, repeat_penalty;
    int top_k;
    int score_prompt;
    const char *seed_text;                      /* NULL: random */
    uint64_t seed;
    bool interactive, chat, raw;
    const char *system;
    const char *attn, *kv_evict, *kv_type;
    const char *rope_scaling;
    float rope_scale, rope_base;
    const char *session;
    bool tokenize, bench, inspect, list_attn, list_evict, version, help, quiet;
    const char *logits, *score, *compare, *depths, *stats;
    const char *isa;
    bool no_mmap;
};

/* Sets defaults, then what the arguments say. -1 with an error for a usage mistake. */
int options_parse(struct options *o, int argc, char **argv, struct error *err);

void options_help(FILE *out);
