/* attn_local.c - an example: every token attends to the `window` newest ones, its own included. */
#include "attention/dense.h"

struct local_params {
    int window;
};

static const struct param params[] = {
    {"window", PARAM_INT, offsetof(struct local_params, window), 128, 1, 1 << 30, NULL, NULL,
     "tokens that a query attends to"},
    {0},
};

static int local_init(struct attn_layer *layer, const struct model *model, struct error *err) {
    (void)model, (void)err;
    layer->cache.store = layer->shape->attend->store;
    return 0;
}

static int local_reserve(struct attn_layer *layer, const struct attn_batch *b, struct error *err) {
    return kv_reserve(&layer->cache, b->n, err);
}

/* Token i in query head h: entries [end - window, end) of its KV head. */
static void attend_window(struct attn_layer *layer, const struct attn_batch *b, int i, int h, float *state) {
    const struct attn_shape *s = layer->shape;
    const struct local_params *p = layer->params;
    int g = h / (s->n_head / s->n_head_kv), end = layer->cache.heads[g].n + i + 1;
    size_t row = ((size_t)i * (size_t)s->n_head + (size_t)h) * (size_t)s->head_dim;
    struct kv_view kv = kv_view(&layer->cache, g);
    struct attend_row query = {.q = b->q + row, .state = state, .limit = end};
    attend_init(state, s->head_dim);
    s->attend->range(&kv, end > p->window ? end - p->window : 0, end, &query, 1);
    attend_finish(state, s->head_dim, b->out + row);
}

static void local_forward(struct attn_layer *layer, const struct attn_batch *b, struct worker *w) {
    const struct attn_shape *s = layer->shape;
    float *state = (float *)layer->scratch + (size_t)w->id * ATTEND_STATE(s->head_dim);
    dense_store(layer, b, w); /* rotates q and k, writes k and v behind the entries */
    team_barrier(w);
    for (int item; (item = team_next(w)) < b->n * s->n_head;)
        attend_window(layer, b, item / s->n_head, item % s->n_head, state);
    team_barrier(w);
    if (w->id == 0) kv_advance(&layer->cache, b->n);
    team_barrier(w);
}

static size_t local_scratch_bytes(const struct attn_layer *layer) {
    return (size_t)layer->shape->n_threads * ATTEND_STATE(layer->shape->head_dim) * sizeof(float);
}

static void local_stats(const struct attn_layer *layer, struct attn_stats *stats) {
    stats->bytes = kv_bytes(&layer->cache);
    stats->entries_cached = layer->cache.heads[0].n;
}

const struct attn_mode attn_local = {
    .name = "local",
    .summary = "an example: every token attends to the newest ones",
    .params = params,
    .params_bytes = sizeof(struct local_params),
    .init = local_init,
    .scratch_bytes = local_scratch_bytes,
    .reserve = local_reserve,
    .forward = local_forward,
    .stats = local_stats,
};
