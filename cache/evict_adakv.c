/* evict_adakv.c - SnapKV with one budget for all heads of a layer (Ada-KV, arXiv 2407.11550).
 *
 * The layer keeps the best G * budget entries whichever head they are in, but each head at least its best
 * safeguard * budget. As kvpress's AdaKVPress over SnapKVPress, except that entries really go. */
#include <math.h>
#include <string.h>

#include "evict_snapkv.h"

struct adakv_options {
    struct snapkv_options snapkv;
    float safeguard;
};

static void share(struct evict_layer *l, int *budgets) {
    const struct evict *e = l->evict;
    const struct adakv_options *o = (const struct adakv_options *)e->options;
    int G = l->cache->n_head_kv, n_safe = (int)(e->options->budget * (double)o->safeguard), total = 0;
    float *all = e->spare; /* the scores of all heads, one after the other */
    float *spare = all + (size_t)G * (size_t)e->cap;
    for (int g = 0; g < G; g++) {
        int n = l->cache->heads[g].n;
        memcpy(all + total, evict_scores(e, g), sizeof *all * (size_t)n);
        int safe = select_best(e->shape.select, all + total, n, n_safe, e->keep, spare);
        for (int j = 0; j < safe; j++) all[total + e->keep[j]] = INFINITY;
        total += n;
    }
    long long allowed = (long long)G * e->options->budget;
    int kept = allowed < total ? (int)allowed : total, begin = 0, i = 0;
    select_best(e->shape.select, all, total, kept, e->keep, spare);
    for (int g = 0; g < G; g++) {
        begin += l->cache->heads[g].n;
        for (budgets[g] = 0; i < kept && e->keep[i] < begin; i++) budgets[g]++;
    }
}

static const struct param params[] = {
    SNAPKV_OPTIONS,
    {"safeguard", PARAM_FLOAT, offsetof(struct adakv_options, safeguard), 0.2, 0, 1, NULL, NULL,
     "share of the budget that each head keeps in any case"},
    {0},
};

const struct evict_policy evict_adakv = {
    .name = "adakv",
    .summary = "snapkv with one budget for all heads of a layer (Ada-KV)",
    .params = params,
    .options_bytes = sizeof(struct adakv_options),
    .prompt_only = true,
    .uses_attention = true,
    .uneven = true,
    .check = snapkv_check,
    .state_bytes = snapkv_state_bytes,
    .observe = snapkv_observe,
    .score = snapkv_score,
    .share = share,
};
