/* evict_expected.c - entries that future queries will attend to stay (Expected Attention, arXiv 2510.00636).
 *
 * Queries before RoPE are taken as normal, with the mean and covariance of all so far (but for the sink's),
 * and as standing at the next `future` positions, over which RoPE is averaged: R. Attention to a key k is
 * then expected to be exp(k.R mu / sqrt(d) + k.R C R'.k / 2d), softmax over the entries after the sink, mean
 * over the group; times the norm of the value. As kvpress's ExpectedAttentionPress at the end of a prompt
 * that came in one batch. The exponents are computed when an entry comes and renewed at the end of a prompt
 * and once `renew` tokens have passed since the last time, for they cost d/2 times as much as attention
 * does. */
#include <math.h>
#include <string.h>

#include "evict.h"

struct expected_options {
    struct evict_options common;
    int future;
    int covariance;
    int renew;
    float epsilon;
};

/* A layer's state. */
struct state {
    int n;          /* queries in the sums */
    int renewed_at; /* tokens so far at the last renewal; 0 before the first */
    double sums[];  /* [H][d + d*d] of queries before RoPE, and of their outer products */
};

static const struct expected_options *options(const struct evict *e) {
    return (const struct expected_options *)e->options;
}

static double *sum_of(const struct evict_layer *l, int h) {
    int d = l->evict->shape.head_dim;
    return ((struct state *)l->state)->sums + (size_t)h * (size_t)(d + d * d);
}

static size_t state_bytes(const struct evict *e) {
    size_t d = (size_t)e->shape.head_dim;
    return sizeof(struct state) + sizeof(double) * (size_t)e->shape.n_head * (d + d * d);
}

/* Per entry: the exponent for each query head of the group, then the norm of the value. */
static int memo_size(const struct evict *e) { return e->shape.n_head / e->shape.n_head_kv + 1; }

/* Adds a head's queries of a batch, from token `first`, with RoPE undone. */
static void add_queries(struct evict_layer *l, const struct evict_batch *b, int first, int h) {
    const struct evict_shape *s = &l->evict->shape;
    int d = s->head_dim;
    float q[KV_MAX_DIM], back[2 * ROPE_MAX_PAIRS];
    double *mean = sum_of(l, h), *square = mean + d;
    for (int i = first; i < b->n; i++) {
        const float *table = b->rope + (size_t)i * 2 * (size_t)s->rope->n_pairs;
        float undo = 1 / (s->rope->magnitude * s->rope->magnitude);
        for (int p = 0; p < s->rope->n_pairs; p++) {
            back[2 * p] = table[2 * p] * undo;
            back[2 * p + 1] = -table[2 * p + 1] * undo;
        }
        memcpy(q, b->q + ((size_t)i * (size_t)s->n_head + (size_t)h) * (size_t)d, sizeof *q * (size_t)d);
        rope_rotate(s->rope, back, q);
        for (int c = 0; c < d; c++) mean[c] += (double)q[c];
        for (int r = 0; options(l->evict)->covariance && r < d; r++)
            for (int c = 0; c < d; c++) square[r * d + c] += (double)q[r] * (double)q[c];
    }
}

/* The inverse of RoPE averaged over n positions from `pos`: the mean of exp(i w p) is a Dirichlet kernel. */
static void average_rope(const struct rope *rope, int pos, int n, float *table) {
    for (int p = 0; p < rope->n_pairs; p++) {
        double half = (double)rope->inv_freq[p] / 2, middle = (2.0 * pos + n - 1) * half;
        double length = sin(half) == 0 ? 1 : sin(n * half) / (n * sin(half));
        length *= (double)rope->magnitude;
        table[2 * p] = (float)(length * cos(middle));
        table[2 * p + 1] = (float)(-length * sin(middle));
    }
}

static double dot(const double *x, const double *y, int n) {
    double lanes[4] = {0};
    int i = 0;
    for (; i + 4 <= n; i += 4)
        for (int j = 0; j < 4; j++) lanes[j] += x[i + j] * y[i + j];
    for (; i < n; i++) lanes[0] += x[i] * y[i];
    return lanes[0] + lanes[1] + lanes[2] + lanes[3];
}

/* Exponents of entries [begin, n) for query head h. `next` is the next token's RoPE position. */
static void exponents(struct evict_layer *l, int h, int next, int begin, int n) {
    const struct evict_shape *s = &l->evict->shape;
    const struct expected_options *o = options(l->evict);
    const struct state *state = l->state;
    int d = s->head_dim, group = s->n_head / s->n_head_kv, head = h / group, size = group + 1;
    float key[KV_MAX_DIM], table[2 * ROPE_MAX_PAIRS], *memo = l->heads[head].memo;
    double z[KV_MAX_DIM], count = state->n ? state->n : 1;
    const double *mean = sum_of(l, h), *square = mean + d;
    average_rope(s->rope, next, o->future, table);
    for (int i = begin; i < n; i++) {
        evict_key(l, head, i, key);
        rope_rotate(s->rope, table, key);
        for (int c = 0; c < d; c++) z[c] = (double)key[c];
        double x = dot(mean, z, d) / count, spread = 0;
        for (int r = 0; o->covariance && r < d; r++) spread += z[r] * dot(square + r * d, z, d);
        if (o->covariance) x += (spread / count - x * x) / 2;
        memo[(size_t)i * (size_t)size + (size_t)(h % group)] = (float)x;
    }
}

static void value_norms(struct evict_layer *l, int head, int begin, int n) {
    int size = l->evict->memo_size;
    float value[KV_MAX_DIM];
    for (int i = begin; i < n; i++) {
        evict_value(l, head, i, value);
        float norm = sqrtf(evict_dot(value, value, l->cache->head_dim));
        l->heads[head].memo[(size_t)(i + 1) * (size_t)size - 1] = norm;
    }
}

static void observe(struct evict_layer *l, const struct evict_batch *b, bool due, struct worker *w) {
    const struct evict_shape *s = &l->evict->shape;
    struct state *state = l->state;
    int group = s->n_head / s->n_head_kv, end = b->pos + b->n, first = l->evict->options->sink - b->pos;
    bool renew = b->prompt_end || !state->renewed_at || end - state->renewed_at >= options(l->evict)->renew;
    if (first < 0) first = 0;
    team_barrier(w); /* every worker has decided */
    if (w->id == 0) {
        if (first < b->n) state->n += b->n - first;
        if (due && renew) state->renewed_at = end;
    }
    team_barrier(w);
    for (int h; (h = team_next(w)) < s->n_head;) {
        const struct evict_head *entries = &l->heads[h / group];
        int n = l->cache->heads[h / group].n;
        add_queries(l, b, first, h);
        if (!due) continue;
        exponents(l, h, b->rope_pos + b->n, renew ? 0 : entries->known, n);
        if (h % group == 0) value_norms(l, h / group, entries->known, n);
    }
    team_barrier(w);
}

static void score(struct evict_layer *l, int head, int n, float *scores) {
    const struct evict *e = l->evict;
    int size = e->memo_size, group = size - 1, sink = 0;
    const float *memo = l->heads[head].memo;
    float *row = e->spare + (size_t)head * (size_t)e->cap;
    while (sink < n && l->cache->heads[head].pos[sink] < e->options->sink) sink++;
    for (int i = 0; i < n; i++) scores[i] = 0;
    for (int h = 0; h < group && sink < n; h++) {
        for (int i = sink; i < n; i++) row[i] = memo[(size_t)i * (size_t)size + (size_t)h];
        e->shape.attend->add_softmax(row + sink, n - sink, 1 / (float)group, scores + sink);
    }
    for (int i = sink; i < n; i++)
        scores[i] = (scores[i] + options(e)->epsilon) * memo[(size_t)(i + 1) * (size_t)size - 1];
    l->heads[head].known = n;
}

static const struct param params[] = {
    EVICT_OPTIONS(0),
    {"future", PARAM_INT, offsetof(struct expected_options, future), 512, 1, 1 << 30, NULL, NULL,
     "positions to look ahead"},
    {"covariance", PARAM_BOOL, offsetof(struct expected_options, covariance), 1, 0, 1, NULL, NULL,
     "0: use the mean of the queries alone"},
    {"renew", PARAM_INT, offsetof(struct expected_options, renew), 64, 1, 1 << 30, NULL, NULL,
     "tokens after which old entries are looked at again"},
    {"epsilon", PARAM_FLOAT, offsetof(struct expected_options, epsilon), 0, 0, 1, NULL, NULL,
     "added to the expected attention before it is multiplied by the value's norm"},
    {0},
};

const struct evict_policy evict_expected = {
    .name = "expected",
    .summary = "entries that the queries to come are expected to attend to (Expected Attention)",
    .params = params,
    .options_bytes = sizeof(struct expected_options),
    .memo_size = memo_size,
    .state_bytes = state_bytes,
    .observe = observe,
    .score = score,
};
