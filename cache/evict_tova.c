/* evict_tova.c - entries that the newest token attends to stay (TOVA, arXiv 2401.06104).
 *
 * Mean over all query heads of the layer, so that every head keeps the same tokens. (kvpress's TOVAPress
 * always keeps the newest entry; here recent=1 does that.) */
#include "evict.h"

static void observe(struct evict_layer *l, const struct evict_batch *b, bool due, struct worker *w) {
    const struct evict_shape *s = &l->evict->shape;
    if (due) evict_attention(l, b->q + (size_t)(b->n - 1) * (size_t)(s->n_head * s->head_dim), 1, w);
}

static void score(struct evict_layer *l, int head, int n, float *scores) {
    (void)head;
    for (int i = 0; i < n; i++) scores[i] = 0;
    for (int g = 0; g < l->cache->n_head_kv; g++) {
        const float *sums = evict_attention_sums(l, g);
        for (int i = 0; i < n; i++) scores[i] += sums[i];
    }
}

static const struct param params[] = {EVICT_OPTIONS(0), {0}};

const struct evict_policy evict_tova = {
    .name = "tova",
    .summary = "entries that the newest token attends to most, mean over the layer's heads",
    .params = params,
    .options_bytes = sizeof(struct evict_options),
    .uses_attention = true,
    .observe = observe,
    .score = score,
};
