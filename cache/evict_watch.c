#include "evict_watch.h"

#include <string.h>

struct watched {
    double rows, mass;
    bool held[];    /* [G, n_ctx] */
};

static size_t state_bytes(const struct evict *e) {
    return sizeof(struct watched) + sizeof(bool) * (size_t)e->shape.n_head_kv * (size_t)e->shape.n_ctx;
}

/* All rows of a batch see the same older entries, so that the sums over rows are enough. */
static void observe(struct evict_layer *l, const struct evict_batch *b, bool due, struct worker *w) {
    const struct evict_shape *s = &l->evict->shape;
    struct watched *watched = l->state;
    (void)due;
    evict_attention(l, b->q, b->n, w);
    for (int head = 0; w->id == 0 && head < s->n_head_kv; head++) {
        const struct kv_head *h = &l->cache->heads[head];
        const float *sums = evict_attention_sums(l, head);
        const bool *held = watched->held + (size_t)head * (size_t)s->n_ctx;
        for (int i = 0; i < h->n; i++)
            if (h->pos[i] >= b->pos || held[h->pos[i]]) watched->mass += (double)sums[i];
    }
    if (w->id == 0) watched->rows += (double)b->n * s->n_head;
    team_barrier(w);
}

/* In the order in which they came; but none ever goes. */
static void score(struct evict_layer *l, int head, int n, float *scores) {
    (void)l, (void)head;
    for (int i = 0; i < n; i++) scores[i] = (float)i;
}

static const struct param params[] = {EVICT_OPTIONS(0), {0}};

static const struct evict_policy watch = {
    .name = "none",
    .summary = "nothing is evicted; measures what another cache's evictions lose",
    .params = params,
    .options_bytes = sizeof(struct evict_options),
    .uses_attention = true,
    .state_bytes = state_bytes,
    .observe = observe,
    .score = score,
};

int evict_watch_create(struct evict **out, const struct evict_shape *shape, struct error *err) {
    return evict_create_policy(out, &watch, "budget=1073741824", shape, err);
}

void evict_watch_hold(struct evict *e, int layer, const struct kv_cache *held) {
    struct watched *watched = e->layers[layer].state;
    size_t n_ctx = (size_t)e->shape.n_ctx;
    memset(watched->held, 0, sizeof(bool) * (size_t)e->shape.n_head_kv * n_ctx);
    for (int g = 0; g < held->n_head_kv; g++) {
        const struct kv_head *h = &held->heads[g];
        for (int i = 0; i < h->n; i++) watched->held[(size_t)g * n_ctx + (size_t)h->pos[i]] = true;
    }
}

void evict_watch_mass(const struct evict *e, int layer, double *rows, double *mass) {
    const struct watched *watched = e->layers[layer].state;
    *rows = watched->rows;
    *mass = watched->mass;
}
