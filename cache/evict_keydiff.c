/* evict_keydiff.c - entries whose keys differ most from the others stay (KeyDiff, arXiv 2504.15364).
 *
 * The score is -cos(k, a), a being the mean of the normalised keys that the head holds. block=N evicts in
 * blocks as the paper does (kvpress: BlockPress over KeyDiffPress): of the entries over the budget the first
 * N join, the best stay, the next N join, and so on. That makes the choice independent of -b, though not what
 * the tokens of a batch attend to. */
#include <math.h>
#include <string.h>

#include "evict.h"

/* What a head knows of its keys: the sum of the normalised ones, and of how many. */
struct directions {
    int n;
    double sum[]; /* [d] */
};

static size_t directions_bytes(int d) { return sizeof(struct directions) + (size_t)d * sizeof(double); }

static size_t state_bytes(const struct evict *e) {
    return (size_t)e->shape.n_head_kv * directions_bytes(e->shape.head_dim);
}

static int memo_size(const struct evict *e) {
    (void)e;
    return 1; /* 1 / norm of the key; 0 for a key of zeros, which is like nothing */
}

static struct directions *directions_of(const struct evict_layer *l, int head) {
    return (struct directions *)((char *)l->state + (size_t)head * directions_bytes(l->cache->head_dim));
}

static void add(struct directions *s, const float *key, double factor, int d) {
    for (int c = 0; c < d; c++) s->sum[c] += (double)key[c] * factor;
}

static void forget(struct evict_layer *l, int head, int i) {
    struct directions *s = directions_of(l, head);
    float key[KV_MAX_DIM];
    evict_key(l, head, i, key);
    add(s, key, -(double)l->heads[head].memo[i], l->cache->head_dim);
    s->n--;
}

/* Brings the sum up to date: from new keys, or from all where some have changed or gone without notice. */
static void sum_directions(struct evict_layer *l, int head, int n) {
    struct evict_head *h = &l->heads[head];
    struct directions *s = directions_of(l, head);
    int d = l->cache->head_dim;
    float key[KV_MAX_DIM];
    if (l->evict->options->rerotate || h->known != s->n) {
        h->known = 0;
        memset(s, 0, directions_bytes(d));
    }
    for (; h->known < n; h->known++) {
        evict_key(l, head, h->known, key);
        float norm = sqrtf(evict_dot(key, key, d));
        h->memo[h->known] = norm > 0 ? 1 / norm : 0;
        add(s, key, (double)h->memo[h->known], d);
    }
    s->n = n;
}

static void score(struct evict_layer *l, int head, int n, float *scores) {
    const struct directions *s = directions_of(l, head);
    struct kv_view kv = kv_view(l->cache, head);
    int d = l->cache->head_dim;
    double square = 0;
    float anchor[KV_MAX_DIM];
    sum_directions(l, head, n);
    for (int c = 0; c < d; c++) square += s->sum[c] * s->sum[c];
    for (int c = 0; c < d; c++) anchor[c] = square > 0 ? (float)(s->sum[c] / sqrt(square)) : 0;
    l->evict->shape.attend->scores(&kv, 0, n, anchor, (size_t)d, 1, scores, (size_t)n);
    for (int i = 0; i < n; i++) scores[i] *= -l->heads[head].memo[i];
}

static const struct param params[] = {
    EVICT_OPTIONS(0),
    {"block", PARAM_INT, offsetof(struct evict_options, block), 0, 0, 1 << 30, NULL, NULL,
     "entries over the budget to look at at a time; 0: all"},
    {0},
};

const struct evict_policy evict_keydiff = {
    .name = "keydiff",
    .summary = "entries whose keys are least like the mean key",
    .params = params,
    .options_bytes = sizeof(struct evict_options),
    .memo_size = memo_size,
    .state_bytes = state_bytes,
    .score = score,
    .forget = forget,
};
