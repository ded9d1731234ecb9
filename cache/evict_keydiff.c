/* evict_keydiff.c - entries whose keys differ most from the others stay (KeyDiff, arXiv 2504.15364).
 *
 * The score is -cos(k, a), a being the mean of the normalised keys that the head holds. block=N evicts in
 * blocks as the paper does (kvpress: BlockPress over KeyDiffPress): of the entries over the budget the first
 * N join, the best stay, the next N join, and so on. That makes the choice independent of -b, though not what
 * the tokens of a batch attend to. */
#include <math.h>
#include <string.h>

#include "evict.h"

#define BLOCK 64 /* keys whose sum is taken in float32 */

static int memo_size(const struct evict *e) {
    (void)e;
    return 1; /* 1 / norm of the key; 0 for a key of zeros, which is like nothing */
}

/* The sum of the n normalised keys; fills in the memo. */
static void sum_directions(struct evict_layer *l, int head, int n, double *sum) {
    struct evict_head *h = &l->heads[head];
    int d = l->cache->head_dim;
    float key[KV_MAX_DIM], part[KV_MAX_DIM];
    for (int c = 0; c < d; c++) sum[c] = 0;
    for (int begin = 0; begin < n; begin += BLOCK) {
        memset(part, 0, sizeof *part * (size_t)d);
        for (int i = begin; i < n && i < begin + BLOCK; i++) {
            evict_key(l, head, i, key);
            if (i >= h->known) {
                float norm = sqrtf(evict_dot(key, key, d));
                h->memo[i] = norm > 0 ? 1 / norm : 0;
            }
            for (int c = 0; c < d; c++) part[c] += key[c] * h->memo[i];
        }
        for (int c = 0; c < d; c++) sum[c] += (double)part[c];
    }
    h->known = n;
}

static void score(struct evict_layer *l, int head, int n, float *scores) {
    int d = l->cache->head_dim;
    double sum[KV_MAX_DIM], norm = 0;
    float key[KV_MAX_DIM], anchor[KV_MAX_DIM];
    sum_directions(l, head, n, sum);
    for (int c = 0; c < d; c++) norm += sum[c] * sum[c];
    for (int c = 0; c < d; c++) anchor[c] = norm > 0 ? (float)(sum[c] / sqrt(norm)) : 0;
    for (int i = 0; i < n; i++) {
        evict_key(l, head, i, key);
        scores[i] = -evict_dot(key, anchor, d) * l->heads[head].memo[i];
    }
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
    .score = score,
};
