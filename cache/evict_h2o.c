/* evict_h2o.c - heavy hitters stay: entries that have received most attention (H2O, arXiv 2306.14048).
 *
 * An entry's score is the attention probability it has received from all queries so far, summed over queries,
 * mean over the query heads of the group. (kvpress's ObservedAttentionPress divides the sum by the number of
 * queries that saw the entry; H2O doesn't.) */
#include "evict.h"

static int memo_size(const struct evict *e) {
    (void)e;
    return 1; /* attention received */
}

static void observe(struct evict_layer *l, const struct evict_batch *b, bool due, struct worker *w) {
    const struct evict_shape *s = &l->evict->shape;
    float share = (float)s->n_head_kv / (float)s->n_head;
    (void)due;
    evict_attention(l, b->q, b->n, w);
    for (int head; (head = team_next(w)) < s->n_head_kv;) {
        const float *sums = evict_attention_sums(l, head);
        for (int i = 0; i < l->cache->heads[head].n; i++) l->heads[head].memo[i] += sums[i] * share;
    }
    team_barrier(w);
}

static void score(struct evict_layer *l, int head, int n, float *scores) {
    for (int i = 0; i < n; i++) scores[i] = l->heads[head].memo[i];
}

static const struct param params[] = {EVICT_OPTIONS(0), {0}};

const struct evict_policy evict_h2o = {
    .name = "h2o",
    .summary = "entries that have received most attention from all queries so far",
    .params = params,
    .options_bytes = sizeof(struct evict_options),
    .uses_attention = true,
    .memo_size = memo_size,
    .observe = observe,
    .score = score,
};
