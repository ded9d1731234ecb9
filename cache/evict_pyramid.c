/* evict_pyramid.c - SnapKV with more entries in the lower layers (PyramidKV, arXiv 2406.02069).
 *
 * Layer budgets fall evenly from the first layer to the last, whose share is budget/beta, so that their mean
 * is the budget; as kvpress (PyramidKVPress) computes them: where the first layer would get more than there
 * are entries before the window, it gets those and the slope is less. Where the last layer's share would not
 * hold sink and window, every layer gets the budget. */
#include <math.h>

#include "evict_snapkv.h"

struct pyramid_options {
    struct snapkv_options snapkv;
    int beta;
};

static void share(struct evict_layer *l, int *budgets) {
    const struct evict *e = l->evict;
    const struct pyramid_options *o = (const struct pyramid_options *)e->options;
    int n = l->cache->heads[0].n, layers = e->shape.n_layer;
    int window = o->snapkv.window > e->options->recent ? o->snapkv.window : e->options->recent;
    double budget = e->options->budget, before = n - o->snapkv.window;
    double last = budget / o->beta, first = 2 * budget - last;
    if (first >= before) {
        first = before;
        last = 2 * budget - first;
    }
    double mine = first - (layers > 1 ? l->index * (first - last) / (layers - 1) : 0);
    bool fits = n >= first && first >= last && last >= window + e->options->sink;
    for (int g = 0; g < l->cache->n_head_kv; g++)
        budgets[g] = fits ? (int)nearbyint(mine) : e->options->budget;
}

static const struct param params[] = {
    SNAPKV_OPTIONS,
    {"beta", PARAM_INT, offsetof(struct pyramid_options, beta), 20, 1, 1 << 20, NULL, NULL,
     "the last layer keeps budget/beta entries a head"},
    {0},
};

const struct evict_policy evict_pyramid = {
    .name = "pyramid",
    .summary = "snapkv with a budget that falls from layer to layer (PyramidKV)",
    .params = params,
    .options_bytes = sizeof(struct pyramid_options),
    .prompt_only = true,
    .uses_attention = true,
    .uneven = true,
    .check = snapkv_check,
    .state_bytes = snapkv_state_bytes,
    .observe = snapkv_observe,
    .score = snapkv_score,
    .share = share,
};
