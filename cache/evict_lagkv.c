/* evict_lagkv.c - entries that stand out against those that follow stay (LagKV, arXiv 2504.04704).
 *
 * The entries after the sink are cut into partitions of `lag`. An entry's keys and values are scaled channel
 * by channel to the range of the next partition; its score is the standard deviation over the channels,
 * softmax over its partition, mean of key and value: as a rank within the partition, or with cross=1 as it
 * is. The last full partition and what follows it score highest, and where there are fewer than two
 * partitions the newest entries do. As kvpress's LagKVPress, after every batch; a channel that is constant in
 * the next partition doesn't count.
 *
 * The memo of an entry is its score. It holds as long as nothing has gone from its partition, the next one,
 * or before them: evict_head.known entries are as they were when they were scored last. */
#include <math.h>
#include <string.h>

#include "evict.h"

struct lagkv_options {
    struct evict_options common;
    int lag;
    int cross;
};

#define MAX_LAG 4096

typedef void (*read_fn)(const struct evict_layer *l, int head, int i, float *x);

/* A key at its place in the cache, wherever that has moved to. */
static void read_key(const struct evict_layer *l, int head, int i, float *key) {
    const struct evict_shape *s = &l->evict->shape;
    int moved = l->heads[head].moved;
    evict_key(l, head, i, key);
    if (!moved) return;
    float table[2 * ROPE_MAX_PAIRS];
    struct rope turn = *s->rope;
    turn.magnitude = 1;
    rope_table(&turn, -moved, table);
    rope_rotate(&turn, table, key);
}

/* Minimum and 1 / range of each channel over entries [begin, begin + lag); 0 for the range of a constant
 * one. */
static void channel_ranges(const struct evict_layer *l, int head, read_fn read, int begin, int lag,
                           float *min, float *scale) {
    int d = l->cache->head_dim;
    float x[KV_MAX_DIM], max[KV_MAX_DIM];
    read(l, head, begin, min);
    memcpy(max, min, sizeof *max * (size_t)d);
    for (int i = begin + 1; i < begin + lag; i++) {
        read(l, head, i, x);
        for (int c = 0; c < d; c++) {
            min[c] = x[c] < min[c] ? x[c] : min[c];
            max[c] = x[c] > max[c] ? x[c] : max[c];
        }
    }
    for (int c = 0; c < d; c++) scale[c] = max[c] > min[c] ? 1 / (max[c] - min[c]) : 0;
}

static float deviation(float *x, int d) {
    float mean = evict_sum(x, d) / (float)d;
    for (int c = 0; c < d; c++) x[c] -= mean;
    return sqrtf(evict_dot(x, x, d) / (float)(d - 1));
}

/* scores += softmax over the partition [begin, begin + lag) of the deviations, relative to the next one. */
static void add_deviations(const struct evict_layer *l, int head, read_fn read, int begin, int lag,
                           float *scores) {
    int d = l->cache->head_dim;
    float min[KV_MAX_DIM], scale[KV_MAX_DIM], x[KV_MAX_DIM], deviations[MAX_LAG];
    channel_ranges(l, head, read, begin + lag, lag, min, scale);
    for (int i = 0; i < lag; i++) {
        read(l, head, begin + i, x);
        for (int c = 0; c < d; c++) x[c] = (x[c] - min[c]) * scale[c];
        deviations[i] = deviation(x, d);
    }
    l->evict->shape.attend->add_softmax(deviations, lag, 0.5f, scores);
}

/* Replaces scores by ranks in [0, 1); of equal ones the first ranks highest. */
static void rank(float *scores, int n) {
    float copy[MAX_LAG];
    memcpy(copy, scores, sizeof *copy * (size_t)n);
    for (int i = 0; i < n; i++) {
        int below = 0;
        for (int j = 0; j < i; j++) below += copy[j] < copy[i];
        for (int j = i + 1; j < n; j++) below += copy[j] <= copy[i];
        scores[i] = (float)below / (float)n;
    }
}

static int memo_size(const struct evict *e) {
    (void)e;
    return 1; /* score */
}

static void score_partition(const struct evict_layer *l, int head, int begin, float *scores) {
    const struct lagkv_options *o = (const struct lagkv_options *)l->evict->options;
    memset(scores, 0, sizeof *scores * (size_t)o->lag);
    add_deviations(l, head, read_key, begin, o->lag, scores);
    add_deviations(l, head, evict_value, begin, o->lag, scores);
    if (!o->cross) rank(scores, o->lag);
}

static void score(struct evict_layer *l, int head, int n, float *scores) {
    struct evict_head *h = &l->heads[head];
    const struct lagkv_options *o = (const struct lagkv_options *)l->evict->options;
    int lag = o->lag, sink = 0;
    while (sink < n && l->cache->heads[head].pos[sink] < o->common.sink) sink++;
    int scored = ((n - sink) / lag - 1) * lag;
    if (scored <= 0) {
        for (int i = 0; i < n; i++) scores[i] = (float)i;
        return;
    }
    for (int i = 0; i < n; i++) scores[i] = 1;
    for (int begin = sink; begin < sink + scored; begin += lag)
        if (begin + 2 * lag > h->known) score_partition(l, head, begin, h->memo + begin);
    memcpy(scores + sink, h->memo + sink, sizeof *scores * (size_t)scored);
    h->known = n;
}

static void forget(struct evict_layer *l, int head, int i) {
    struct evict_head *h = &l->heads[head];
    if (h->known > i) h->known = i;
}

static const struct param params[] = {
    EVICT_OPTIONS(0),
    {"lag", PARAM_INT, offsetof(struct lagkv_options, lag), 128, 2, MAX_LAG, NULL, NULL,
     "entries in a partition"},
    {"cross", PARAM_BOOL, offsetof(struct lagkv_options, cross), 0, 0, 1, NULL, NULL,
     "1: compare scores of different partitions, not ranks"},
    {0},
};

const struct evict_policy evict_lagkv = {
    .name = "lagkv",
    .summary = "entries that stand out against the range of those that follow",
    .params = params,
    .options_bytes = sizeof(struct lagkv_options),
    .memo_size = memo_size,
    .score = score,
    .forget = forget,
};
