/* evict_vnorm.c - an example: entries with large values stay, whatever their keys. */
#include "cache/evict.h"

static void score(struct evict_layer *l, int head, int n, float *scores) {
    float value[KV_MAX_DIM];
    for (int i = 0; i < n; i++) {
        kv_value(l->cache, head, i, value);
        scores[i] = evict_dot(value, value, l->cache->head_dim);
    }
}

static const struct param params[] = {EVICT_OPTIONS(0), {0}};

const struct evict_policy evict_vnorm = {
    .name = "vnorm",
    .summary = "an example: entries whose values have the largest norms",
    .params = params,
    .options_bytes = sizeof(struct evict_options),
    .score = score,
};
