/* evict_attention.c - attention probabilities for the policies that are made of them.
 *
 * The queries of a KV head are cut into at most CHUNKS chunks. Whoever is free takes a chunk, computes the
 * scores of a few rows at a time, turns them into probabilities and adds these up per entry; the chunks' sums
 * are then added in order, so that the result doesn't depend on the number of threads. */
#include "evict.h"

#include <string.h>

#define CHUNKS 8
#define ROWS 16  /* rows of scores that a worker holds */

size_t evict_attention_bytes(const struct evict_shape *s, int cap) {
    return sizeof(float) * (size_t)cap * (size_t)(s->n_head_kv * CHUNKS + s->n_threads * ROWS);
}

static float *chunk_sums(const struct evict *e, int head, int chunk) {
    return e->attention + (size_t)(head * CHUNKS + chunk) * (size_t)e->cap;
}

const float *evict_attention_sums(const struct evict_layer *l, int head) {
    return chunk_sums(l->evict, head, 0);
}

/* What m <= ROWS rows, `stride` floats apart, give to a head's entries. Row r sees the first limit + r *
 * step. */
static void add_rows(const struct evict_layer *l, int head, const float *q, size_t stride, int m, int limit,
                     int step, float *rows, float *sums) {
    const struct evict *e = l->evict;
    struct kv_view kv = kv_view(l->cache, head);
    e->shape.attend->scores(&kv, 0, limit + (m - 1) * step, q, stride, m, rows, (size_t)e->cap);
    for (int r = 0; r < m; r++)
        e->shape.attend->add_softmax(rows + (size_t)r * (size_t)e->cap, limit + r * step, 1, sums);
}

/* Tokens [begin, end) of n_q, all query heads of the group. */
static void add_tokens(const struct evict_layer *l, int head, const float *q, int n_q, int begin, int end,
                       float *rows, float *sums) {
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
            add_rows(l, head, q_head + (size_t)t * token + (size_t)h * d, token,
                     end - t < ROWS ? end - t : ROWS, before + t + 1, 1, rows, sums);
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
