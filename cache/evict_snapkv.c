/* evict_snapkv.c - the end of a prompt knows what matters of it (SnapKV, arXiv 2404.14469).
 *
 * When the prompt is complete, an entry's score is the attention from its last `window` queries, mean over
 * them and over the group, average-pooled over `kernel` neighbours among the entries before the window
 * (beyond either end there are zeros, as in kvpress). The window itself ranks above all that, its newest
 * entries first where the budget is less than the window; what is generated afterwards stays. */
#include "evict_snapkv.h"

#include <math.h>
#include <string.h>

#define WINDOW_RANK 100 /* exponent of two: above all sums of probabilities */

/* The newest queries of the prompt in progress. */
struct state {
    int n;
    bool complete;
    float q[]; /* [window, H, d] */
};

static const struct snapkv_options *options(const struct evict *e) {
    return (const struct snapkv_options *)e->options;
}

static size_t query_size(const struct evict *e) {
    return (size_t)e->shape.n_head * (size_t)e->shape.head_dim;
}

int snapkv_check(const void *opts, struct error *err) {
    const struct snapkv_options *o = opts;
    if (o->kernel % 2) return 0;
    return fail_usage(err, "--kv-evict: kernel=%d must be odd, to be centred on an entry", o->kernel);
}

size_t snapkv_state_bytes(const struct evict *e) {
    return sizeof(struct state) + sizeof(float) * (size_t)options(e)->window * query_size(e);
}

static void remember(const struct evict *e, struct state *s, const struct evict_batch *b) {
    size_t size = query_size(e);
    if (s->complete) s->n = 0;
    s->complete = b->prompt_end;
    int window = options(e)->window, fresh = b->n < window ? b->n : window;
    int old = s->n + fresh > window ? window - fresh : s->n;
    const float *newest = b->q + (size_t)(b->n - fresh) * size;
    memmove(s->q, s->q + (size_t)(s->n - old) * size, sizeof *s->q * (size_t)old * size);
    memcpy(s->q + (size_t)old * size, newest, sizeof *s->q * (size_t)fresh * size);
    s->n = old + fresh;
}

void snapkv_observe(struct evict_layer *l, const struct evict_batch *b, bool due, struct worker *w) {
    struct state *s = l->state;
    if (!b->prefill) return;
    if (w->id == 0) remember(l->evict, s, b);
    team_barrier(w);
    if (due) evict_attention(l, s->q, s->n, w);
}

void snapkv_score(struct evict_layer *l, int head, int n, float *scores) {
    const struct state *s = l->state;
    int reach = options(l->evict)->kernel / 2, before = n - s->n;
    const float *sums = evict_attention_sums(l, head);
    for (int i = 0; i < before; i++) {
        int first = i > reach ? i - reach : 0, last = i + reach < before ? i + reach : before - 1;
        scores[i] = 0;
        for (int j = first; j <= last; j++) scores[i] += sums[j];
    }
    for (int i = before; i < n; i++) scores[i] = ldexpf((float)(i - before + 1), WINDOW_RANK);
}

static const struct param params[] = {SNAPKV_OPTIONS, {0}};

const struct evict_policy evict_snapkv = {
    .name = "snapkv",
    .summary = "at the end of the prompt: entries that its last tokens attend to; generated tokens stay",
    .params = params,
    .options_bytes = sizeof(struct snapkv_options),
    .prompt_only = true,
    .uses_attention = true,
    .check = snapkv_check,
    .state_bytes = snapkv_state_bytes,
    .observe = snapkv_observe,
    .score = snapkv_score,
};
