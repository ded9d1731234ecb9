/* evict_attention.c - attention probabilities for the policies that are made of them.
 *
 * The queries of a KV head are cut into at most CHUNKS chunks. Whoever is free takes a chunk, computes the
 * scores of a few rows at a time, turns them into probabilities and adds these up per entry; the chunks' sums
 * are then added in order, so that the result doesn't depend on the number of threads. */
#include "evict.h"

#include <math.h>
#include <string.h>

#define CHUNKS 8
#define ROWS 16  /* rows of scores that a worker holds */
#define LANES 16 /* independent sums, which the compiler can put into vectors */

float evict_dot(const float *x, const float *y, int n) {
    float lanes[LANES] = {0}, sum = 0;
    int i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) lanes[j] += x[i + j] * y[i + j];
    for (; i < n; i++) sum += x[i] * y[i];
    for (int j = 0; j < LANES; j++) sum += lanes[j];
    return sum;
}

static float largest(const float *x, int n) {
    float lanes[LANES], max;
    int i = 0;
    for (int j = 0; j < LANES; j++) lanes[j] = x[0];
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) lanes[j] = x[i + j] > lanes[j] ? x[i + j] : lanes[j];
    max = lanes[0];
    for (int j = 1; j < LANES; j++) max = lanes[j] > max ? lanes[j] : max;
    for (; i < n; i++) max = x[i] > max ? x[i] : max;
    return max;
}

/* exp(x) for x <= 0, relative error below 1e-6: 2^k * e^r with x = k ln 2 + r and the Taylor polynomial of
 * e^r, |r| <= ln 2 / 2. Written so that a loop of it becomes vector code. */
static inline float exp_negative(float x) {
    const float round = 12582912.0f; /* 1.5 * 2^23: adding it leaves the integer in the low bits */
    x = x > -87.0f ? x : -87.0f;
    float shifted = x * 1.44269504f + round, k = shifted - round;
    float r = x - k * 0.693359375f + k * 2.12194440e-4f;
    float p = 1 + r * (1 + r * (1.0f / 2 + r * (1.0f / 6 + r * (1.0f / 24 + r * (1.0f / 120 + r * (1.0f / 720))))));
    uint32_t exponent, bits;
    memcpy(&exponent, &shifted, sizeof exponent);
    memcpy(&bits, &p, sizeof bits);
    bits += exponent << 23;
    memcpy(&p, &bits, sizeof p);
    return p;
}

void evict_add_softmax(float *scores, int n, float scale, float *sums) {
    float max = largest(scores, n);
    for (int i = 0; i < n; i++) scores[i] = exp_negative(scores[i] - max);
    float lanes[LANES] = {0}, total = 0;
    int full = n / LANES * LANES;
    for (int i = 0; i < full; i += LANES)
        for (int j = 0; j < LANES; j++) lanes[j] += scores[i + j];
    for (int i = full; i < n; i++) total += scores[i];
    for (int j = 0; j < LANES; j++) total += lanes[j];
    scale /= total;
    for (int i = 0; i < n; i++) sums[i] += scores[i] * scale;
}

size_t evict_attention_bytes(const struct evict_shape *s, int cap) {
    return sizeof(float) * (size_t)cap * (size_t)(s->n_head_kv * CHUNKS + s->n_threads * ROWS);
}

static float *chunk_sums(const struct evict *e, int head, int chunk) {
    return e->attention + (size_t)(head * CHUNKS + chunk) * (size_t)e->cap;
}

const float *evict_attention_sums(const struct evict_layer *l, int head) { return chunk_sums(l->evict, head, 0); }

/* What m <= ROWS rows, `stride` floats apart, give to a head's entries. Row r sees the first limit + r *
 * step. */
static void add_rows(const struct evict_layer *l, int head, const float *q, size_t stride, int m, int limit, int step,
                     float *rows, float *sums) {
    const struct evict *e = l->evict;
    struct kv_view kv = kv_view(l->cache, head);
    e->shape.attend->scores(&kv, 0, limit + (m - 1) * step, q, stride, m, rows, (size_t)e->cap);
    for (int r = 0; r < m; r++) evict_add_softmax(rows + (size_t)r * (size_t)e->cap, limit + r * step, 1, sums);
}

/* Tokens [begin, end) of n_q, all query heads of the group. */
static void add_tokens(const struct evict_layer *l, int head, const float *q, int n_q, int begin, int end, float *rows,
                       float *sums) {
    const struct evict_shape *s = &l->evict->shape;
    int group = s->n_head / s->n_head_kv, before = l->cache->heads[head].n - n_q;
    size_t d = (size_t)s->head_dim, token = (size_t)s->n_head * d;
    const float *q_head = q + (size_t)head * (size_t)group * d;
    if (end - begin == 1 && group <= ROWS) { /* the group's heads together: the keys are read once */
        add_rows(l, head, q_head + (size_t)begin * token, d, group, before + begin + 1, 0, rows, sums);
        return;
    }
    for (int t = begin; t < end; t += ROWS)
        for (int h = 0; h < group; h++)
            add_rows(l, head, q_head + (size_t)t * token + (size_t)h * d, token, end - t < ROWS ? end - t : ROWS,
                     before + t + 1, 1, rows, sums);
}

void evict_attention(const struct evict_layer *l, const float *q, int n_q, struct worker *w) {
    const struct evict *e = l->evict;
    int G = e->shape.n_head_kv, chunk = (n_q + CHUNKS - 1) / CHUNKS;
    if (chunk < ROWS) chunk = ROWS;
    int n_chunks = (n_q + chunk - 1) / chunk;
    float *rows = e->attention + (size_t)(G * CHUNKS + w->id * ROWS) * (size_t)e->cap;
    for (int item; (item = team_next(w)) < G * n_chunks;) {
        int head = item % G, begin = item / G * chunk, end = begin + chunk < n_q ? begin + chunk : n_q;
        float *sums = chunk_sums(e, head, item / G);
        memset(sums, 0, sizeof *sums * (size_t)l->cache->heads[head].n);
        add_tokens(l, head, q, n_q, begin, end, rows, sums);
    }
    team_barrier(w);
    for (int head; n_chunks > 1 && (head = team_next(w)) < G;) {
        float *sums = chunk_sums(e, head, 0);
        for (int c = 1; c < n_chunks; c++) {
            const float *more = chunk_sums(e, head, c);
            for (int i = 0; i < l->cache->heads[head].n; i++) sums[i] += more[i];
        }
    }
    if (n_chunks > 1) team_barrier(w);
}
