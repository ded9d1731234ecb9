/* evict_knorm.c - entries with small keys stay: they get much attention (Devoto et al., arXiv 2406.11430). */
#include <math.h>

#include "evict.h"

static int memo_size(const struct evict *e) {
    (void)e;
    return 1; /* the key's norm */
}

static void score(struct evict_layer *l, int head, int n, float *scores) {
    struct evict_head *h = &l->heads[head];
    float key[KV_MAX_DIM];
    for (; h->known < n; h->known++) {
        evict_key(l, head, h->known, key);
        h->memo[h->known] = sqrtf(evict_dot(key, key, l->cache->head_dim));
    }
    for (int i = 0; i < n; i++) scores[i] = -h->memo[i];
}

static const struct param params[] = {EVICT_OPTIONS(0), {0}};

const struct evict_policy evict_knorm = {
    .name = "knorm",
    .summary = "entries whose keys have the smallest norms",
    .params = params,
    .options_bytes = sizeof(struct evict_options),
    .memo_size = memo_size,
    .score = score,
};
