/* landmark.c - Landmark Attention (Mohtashami & Jaggi 2023, arXiv 2305.16300), as llama_mem.py in the
 * authors' repository runs it.
 *
 * The last token of every block is a landmark (landmarks.c puts them in). A query in block b attends to the
 * ordinary tokens of its own block and to the n = min(topk, b) past blocks whose landmarks score highest
 * for it. One softmax goes over its own block's tokens and the landmarks of those blocks; what a landmark
 * gets is spread over its block's tokens by a softmax of their own.
 *
 * So that no distance exceeds what training saw, the context is as if it were n + 2 blocks long, from
 * P = (b-n-1)*block on. When landmarks are scored, the newest n stand where they are and all older ones at
 * P + block - 1. Of the blocks retrieved, in order, the j-th starts at P + (j+1)*block if it is one of the
 * newest n, else at P + j*block.
 *
 * A block can stand anywhere because RoPE knows distances only: R(q,t).R(k,S+o) = R(q,t-S).R(k,o). The keys
 * are stored rotated by their place o within the block, once and for all, and the query is rotated by its
 * distance t-S to the block's start, which is its own place in its block and a whole number of blocks.
 *
 * key=mean needs no training and no landmark tokens: the mean of a block's keys takes the landmark key's
 * part, at the block's last place, in the scores as well as in the softmax; all tokens of a block are
 * ordinary. */
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../alloc.h"
#include "../model.h"
#include "attention.h"

#define TILE 8            /* query rows that a worker takes at a time in a prompt */
#define FEW_ROWS 16       /* rows (tokens x query heads) below which it takes one */
#define SCORES 256        /* landmarks that are scored at a time */

enum { KEY_LANDMARK, KEY_MEAN };

struct landmark_params {
    int block, topk, key;
};

struct choice {
    float score;
    int block;
};

struct landmark {
    int past;             /* positions so far */
    int n_ordinary;       /* cached tokens per block: entry c * n_ordinary + o is token o of block c */
    float *places;        /* [block, 2 * n_pairs] RoPE at each place within a block */
    float *shifts;        /* [n_shifts, 2 * n_pairs] rotation by a number of blocks */
    int n_shifts;
    uint8_t **marks;      /* [G] landmark (or mean) keys at the last place of their blocks, in rows as the
                             cache has them */
    int marks_cap;
    float *sums;          /* [G, d] key=mean: sum of the keys of the block in progress */
    struct choice *best;  /* [n_threads, TILE, best_cap] */
    int best_cap;
    double attended;      /* landmarks and entries read, summed over generated tokens and query heads */
};

static const struct param landmark_table[] = {
    {"block", PARAM_INT, offsetof(struct landmark_params, block), 51, 2, 1 << 20, NULL,
     "attention.landmark.block_size", "tokens per block, its landmark included"},
    {"topk", PARAM_INT, offsetof(struct landmark_params, topk), 4, 1, 1 << 16, NULL,
     "attention.landmark.top_k", "blocks that a query retrieves"},
    {"key", PARAM_CHOICE, offsetof(struct landmark_params, key), KEY_LANDMARK, 0, 0, "landmark|mean", NULL,
     "what stands for a block: its trained landmark token, or the mean of its keys"},
    {0},
};

static const float *place_table(const struct attn_layer *layer, int place) {
    const struct landmark *state = layer->state;
    return state->places + (size_t)place * 2 * (size_t)layer->shape->rope->n_pairs;
}

/* Cached entries of the first `n` positions. */
static int count_entries(const struct attn_layer *layer, int n) {
    const struct landmark_params *params = layer->params;
    const struct landmark *state = layer->state;
    int place = n % params->block;
    return n / params->block * state->n_ordinary + (place < state->n_ordinary ? place : state->n_ordinary);
}

/* ---- storing ---- */

static void store_mark(const struct attn_layer *layer, int g, int block, const float *rotated) {
    const struct landmark *state = layer->state;
    layer->shape->attend->store(layer->cache.type_k, layer->shape->head_dim, rotated,
                                state->marks[g] + (size_t)block * layer->cache.k_row_bytes);
}

/* In the first layer every landmark has the same input and so the same key: far from a query their scores are equal,
 * and the earliest are retrieved. But products of a whole prompt and of one token differ in their last bits, which
 * would decide instead, so that all take the first one's. */
static void store_first_mark(const struct attn_layer *layer, const struct attn_batch *b, int g, int block) {
    const struct attn_shape *s = layer->shape;
    const struct landmark_params *params = layer->params;
    const struct landmark *state = layer->state;
    size_t size = layer->cache.k_row_bytes;
    int first = params->block - 1 - b->pos; /* the first landmark's index in the batch, if it is there */
    if (first < 0) {
        memcpy(state->marks[g] + (size_t)block * size, state->marks[g], size);
        return;
    }
    float k[KV_MAX_DIM];
    memcpy(k, b->k + (size_t)(first * s->n_head_kv + g) * (size_t)s->head_dim, (size_t)s->head_dim * sizeof *k);
    rope_rotate(s->rope, place_table(layer, params->block - 1), k);
    store_mark(layer, g, block, k);
}

/* Rotates the queries of token i by its place, times the softmax scale, in place, and stores its keys. */
static void store_token(const struct attn_layer *layer, const struct attn_batch *b, int i) {
    const struct attn_shape *s = layer->shape;
    const struct landmark_params *params = layer->params;
    const struct landmark *state = layer->state;
    int d = s->head_dim, block = (b->pos + i) / params->block, place = (b->pos + i) % params->block;
    const float *table = place_table(layer, place);
    float *q = b->q + (size_t)i * (size_t)(s->n_head * d);
    for (int h = 0; h < s->n_head; h++) rope_rotate(s->rope, table, q + h * d);
    for (int c = 0; c < s->n_head * d; c++) q[c] *= s->scale;
    for (int g = 0; g < s->n_head_kv; g++) {
        size_t row = ((size_t)i * (size_t)s->n_head_kv + (size_t)g) * (size_t)d;
        float k[KV_MAX_DIM];
        memcpy(k, b->k + row, (size_t)d * sizeof *k);
        rope_rotate(s->rope, table, k);
        if (place < state->n_ordinary)
            kv_write(&layer->cache, g, block * state->n_ordinary + place, b->pos + i, k, b->v + row);
        else if (layer->index == 0) store_first_mark(layer, b, g, block);
        else store_mark(layer, g, block, k);
    }
}

/* key=mean: adds up the keys of a KV head; a block that is complete gets its mean. */
static void add_means(const struct attn_layer *layer, const struct attn_batch *b, int g) {
    const struct attn_shape *s = layer->shape;
    const struct landmark_params *params = layer->params;
    const struct landmark *state = layer->state;
    int d = s->head_dim;
    float *sum = state->sums + g * d;
    for (int i = 0; i < b->n; i++) {
        const float *k = b->k + ((size_t)i * (size_t)s->n_head_kv + (size_t)g) * (size_t)d;
        for (int c = 0; c < d; c++) sum[c] += k[c];
        if ((b->pos + i + 1) % params->block) continue;
        for (int c = 0; c < d; c++) sum[c] /= (float)params->block;
        rope_rotate(s->rope, place_table(layer, params->block - 1), sum);
        store_mark(layer, g, (b->pos + i) / params->block, sum);
        memset(sum, 0, (size_t)d * sizeof *sum);
    }
}

/* ---- retrieving ---- */

/* Some query rows of one block and KV head. */
struct rows {
    int block, g;             /* b of the definition, KV head */
    int n_retrieved;          /* n of the definition */
    int m;                    /* rows, at most TILE */
    const float *q[TILE];     /* [d] rotated by its place */
    float *out[TILE];
    int own[TILE];            /* tokens of its own block that it attends to */
};

/* out [d] = q with `blocks` blocks added to its distance. */
static void shift_query(const struct attn_layer *layer, const float *q, int blocks, float *out) {
    const struct landmark *state = layer->state;
    const struct rope *rope = layer->shape->rope;
    memcpy(out, q, (size_t)layer->shape->head_dim * sizeof *out);
    rope_rotate(rope, state->shifts + (size_t)blocks * 2 * (size_t)rope->n_pairs, out);
}

static struct kv_view marks_view(const struct attn_layer *layer, int g) {
    const struct landmark *state = layer->state;
    struct kv_view view = kv_view(&layer->cache, g);
    view.k = state->marks[g];
    view.v = NULL;
    return view;
}

/* Whether a score is larger by more than rounding, which differs between prompts and generated tokens. */
static bool beats(float score, float other) { return score > other + 2e-6f * fabsf(other); }

/* Puts a block into the n best, sorted by score; the earlier one stays ahead where scores are equal. */
static void offer(struct choice *best, int *count, int n, float score, int block) {
    if (*count == n && !beats(score, best[n - 1].score)) return;
    int i = *count < n ? (*count)++ : n - 1;
    for (; i > 0 && beats(score, best[i - 1].score); i--) best[i] = best[i - 1];
    best[i] = (struct choice){.score = score, .block = block};
}

static int compare_blocks(const void *a, const void *b) {
    int x = ((const struct choice *)a)->block, y = ((const struct choice *)b)->block;
    return (x > y) - (x < y);
}

/* Scores the landmarks [begin, end) with the rows' queries `shift` blocks further away. */
static void offer_range(const struct attn_layer *layer, const struct rows *rows, int begin, int end,
                        int shift, struct choice *best, int *count) {
    const struct landmark *state = layer->state;
    int d = layer->shape->head_dim;
    struct kv_view marks = marks_view(layer, rows->g);
    float q[TILE * KV_MAX_DIM], scores[TILE * SCORES];
    for (int r = 0; r < rows->m; r++) shift_query(layer, rows->q[r], shift, q + r * d);
    for (int first = begin; first < end; first += SCORES) {
        int n = end - first < SCORES ? end - first : SCORES;
        layer->shape->attend->scores(&marks, first, first + n, q, (size_t)d, rows->m, scores, SCORES);
        for (int r = 0; r < rows->m; r++)
            for (int i = 0; i < n; i++)
                offer(best + r * state->best_cap, &count[r], rows->n_retrieved, scores[r * SCORES + i],
                      first + i);
    }
}

/* The blocks that each row retrieves, in order: n_retrieved from best + r * best_cap on. */
static void retrieve(const struct attn_layer *layer, const struct rows *rows, struct choice *best) {
    const struct landmark *state = layer->state;
    int n = rows->n_retrieved, newest = rows->block - n, count[TILE] = {0};
    if (newest == 0) { /* all there are */
        for (int r = 0; r < rows->m; r++)
            for (int c = 0; c < n; c++) best[r * state->best_cap + c].block = c;
        return;
    }
    offer_range(layer, rows, 0, newest, n + 1, best, count);
    for (int c = newest; c < rows->block; c++)
        offer_range(layer, rows, c, c + 1, rows->block - c, best, count);
    for (int r = 0; r < rows->m; r++)
        qsort(best + r * state->best_cap, (size_t)n, sizeof *best, compare_blocks);
}

/* ---- attending ---- */

/* Row r attends to a retrieved block that starts `shift` blocks before its own. */
static void attend_block(const struct attn_layer *layer, const struct rows *rows, int r, int block, int shift,
                         float *state_of_row) {
    const struct landmark *state = layer->state;
    const struct attend_kernels *attend = layer->shape->attend;
    int d = layer->shape->head_dim, begin = block * state->n_ordinary;
    struct kv_view kv = kv_view(&layer->cache, rows->g), marks = marks_view(layer, rows->g);
    float q[KV_MAX_DIM], mark;
    _Alignas(64) float inner[ATTEND_STATE(KV_MAX_DIM)], entry[ATTEND_STATE(KV_MAX_DIM)];
    shift_query(layer, rows->q[r], shift, q);
    attend->scores(&marks, block, block + 1, q, (size_t)d, 1, &mark, 1);
    attend_init(inner, d);
    const struct attend_row row = {.q = q, .state = inner, .limit = INT_MAX};
    attend->range(&kv, begin, begin + state->n_ordinary, &row, 1);
    /* In the outer softmax the block is one entry: the landmark's score, the block's mean value. */
    entry[ATTEND_MAX] = mark;
    entry[ATTEND_SUM] = 1;
    attend_finish(inner, d, entry + ATTEND_ACC);
    attend_merge(state_of_row, entry, d);
}

static void attend_rows(const struct attn_layer *layer, const struct rows *rows, struct choice *best) {
    const struct landmark *state = layer->state;
    const struct attn_shape *s = layer->shape;
    int d = s->head_dim, n = rows->n_retrieved, begin = rows->block * state->n_ordinary;
    _Alignas(64) float states[TILE * ATTEND_STATE(KV_MAX_DIM)];
    struct attend_row own[TILE];
    struct kv_view kv = kv_view(&layer->cache, rows->g);
    for (int r = 0; r < rows->m; r++) {
        own[r] = (struct attend_row){
            .q = rows->q[r], .state = states + r * ATTEND_STATE(d), .limit = begin + rows->own[r],
        };
        attend_init(own[r].state, d);
    }
    s->attend->range(&kv, begin, begin + rows->own[rows->m - 1], own, rows->m);
    retrieve(layer, rows, best);
    for (int r = 0; r < rows->m; r++) {
        for (int j = 0; j < n; j++) {
            int block = best[r * state->best_cap + j].block;
            bool newest = block >= rows->block - n;
            attend_block(layer, rows, r, block, newest ? n - j : n + 1 - j, own[r].state);
        }
        attend_finish(own[r].state, d, rows->out[r]);
    }
}

/* Rows [first, first + m) of a KV head's queries in a block; row r is token r / group and query head
 * r % group of the group. */
static void forward_rows(const struct attn_layer *layer, const struct attn_batch *b, int block, int g,
                         int first, int m, struct choice *best) {
    const struct attn_shape *s = layer->shape;
    const struct landmark_params *params = layer->params;
    const struct landmark *state = layer->state;
    int group = s->n_head / s->n_head_kv, start = block * params->block;
    int begin = start > b->pos ? start - b->pos : 0; /* the block's first token in the batch */
    struct rows rows = {.block = block, .g = g, .m = m};
    rows.n_retrieved = block < params->topk ? block : params->topk;
    for (int r = 0; r < m; r++) {
        int token = begin + (first + r) / group, head = g * group + (first + r) % group;
        int place = b->pos + token - start;
        size_t row = ((size_t)token * (size_t)s->n_head + (size_t)head) * (size_t)s->head_dim;
        rows.q[r] = b->q + row;
        rows.out[r] = b->out + row;
        rows.own[r] = place < state->n_ordinary ? place + 1 : state->n_ordinary;
    }
    attend_rows(layer, &rows, best);
}

/* ---- the mode ---- */

static void count_attended(const struct attn_layer *layer, const struct attn_batch *b) {
    const struct landmark_params *params = layer->params;
    struct landmark *state = layer->state;
    for (int i = 0; i < b->n; i++) {
        int block = (b->pos + i) / params->block, own = (b->pos + i) % params->block + 1;
        int retrieved = block < params->topk ? block : params->topk;
        if (own > state->n_ordinary) own = state->n_ordinary;
        double entries = (double)block + (double)retrieved * state->n_ordinary + own;
        state->attended += entries * layer->shape->n_head;
    }
}

static void landmark_forward(struct attn_layer *layer, const struct attn_batch *b, struct worker *w) {
    const struct attn_shape *s = layer->shape;
    const struct landmark_params *params = layer->params;
    struct landmark *state = layer->state;
    int begin, end, G = s->n_head_kv, group = s->n_head / G, past = b->pos + b->n;
    worker_range(w, b->n, 1, &begin, &end);
    for (int i = begin; i < end; i++) store_token(layer, b, i);
    if (params->key == KEY_MEAN)
        for (int g; (g = team_next(w)) < G;) add_means(layer, b, g);
    team_barrier(w);

    int tile = b->n * s->n_head <= FEW_ROWS ? 1 : TILE, tiles = (params->block * group + tile - 1) / tile;
    int first_block = b->pos / params->block, n_blocks = (past - 1) / params->block - first_block + 1;
    struct choice *best = state->best + (size_t)w->id * TILE * (size_t)state->best_cap;
    if (tiles > b->n * group) tiles = b->n * group;
    for (int item; (item = team_next(w)) < n_blocks * G * tiles;) {
        int block = first_block + item / (G * tiles), g = item / tiles % G, first = item % tiles * tile;
        int from = block * params->block < b->pos ? b->pos : block * params->block;
        int to = (block + 1) * params->block < past ? (block + 1) * params->block : past;
        int left = (to - from) * group - first;
        if (left > 0) forward_rows(layer, b, block, g, first, left < tile ? left : tile, best);
    }
    team_barrier(w);
    if (w->id == 0) {
        if (!b->prefill) count_attended(layer, b);
        kv_advance(&layer->cache, count_entries(layer, past) - layer->cache.heads[0].n);
        state->past = past;
    }
    team_barrier(w);
}

/* Makes room for the landmarks of n blocks. */
static int reserve_marks(struct attn_layer *layer, int n, struct error *err) {
    struct landmark *state = layer->state;
    if (n <= state->marks_cap) return 0;
    int64_t cap = (int64_t)state->marks_cap + state->marks_cap / 4 + 16;
    if (cap < n) cap = n;
    for (int g = 0; g < layer->shape->n_head_kv; g++) {
        uint8_t *rows = realloc(state->marks[g], (size_t)cap * layer->cache.k_row_bytes);
        if (!rows) return fail(err, "out of memory for %d landmarks: use a smaller context (-c)", n);
        state->marks[g] = rows;
    }
    state->marks_cap = (int)cap;
    return 0;
}

/* Makes room for n retrieved blocks per query. */
static int reserve_choices(struct attn_layer *layer, int n, struct error *err) {
    const struct attn_shape *s = layer->shape;
    const struct landmark_params *params = layer->params;
    struct landmark *state = layer->state;
    if (n + 2 <= state->n_shifts) return 0;
    int cap = 2 * n < params->topk ? 2 * n : params->topk;
    size_t table = 2 * (size_t)s->rope->n_pairs;
    float *shifts = realloc(state->shifts, (size_t)(cap + 2) * table * sizeof *shifts);
    if (shifts) state->shifts = shifts;
    size_t n_best = (size_t)s->n_threads * TILE * ((size_t)cap + 1);
    struct choice *best = realloc(state->best, n_best * sizeof *best);
    if (best) state->best = best;
    if (!shifts || !best)
        return fail(err, "out of memory for %d retrieved blocks: lower --attn landmark:topk", cap);
    struct rope rope = *s->rope;
    rope.magnitude = 1; /* a query has it already, from its place */
    for (int i = state->n_shifts; i < cap + 2; i++)
        rope_table(&rope, (int64_t)i * params->block, state->shifts + (size_t)i * table);
    state->n_shifts = cap + 2;
    state->best_cap = cap + 1;
    return 0;
}

static int landmark_reserve(struct attn_layer *layer, const struct attn_batch *b, struct error *err) {
    const struct landmark_params *params = layer->params;
    int last = (b->pos + b->n - 1) / params->block;
    int more = count_entries(layer, b->pos + b->n) - layer->cache.heads[0].n;
    if (kv_reserve(&layer->cache, more, err) || reserve_marks(layer, last + 1, err)) return -1;
    return reserve_choices(layer, last < params->topk ? last : params->topk, err);
}

static int landmark_init(struct attn_layer *layer, const struct model *model, struct error *err) {
    const struct attn_shape *s = layer->shape;
    const struct landmark_params *params = layer->params;
    struct landmark *state = calloc(1, sizeof *state);
    (void)model;
    layer->state = state;
    if (!state) return fail(err, "out of memory for the state of layer %d", layer->index);
    size_t table = 2 * (size_t)s->rope->n_pairs;
    state->n_ordinary = params->key == KEY_MEAN ? params->block : params->block - 1;
    state->places = alloc_zeroed((size_t)params->block * table * sizeof(float));
    state->marks = calloc((size_t)s->n_head_kv, sizeof *state->marks);
    state->sums = alloc_zeroed((size_t)(s->n_head_kv * s->head_dim) * sizeof(float));
    if (!state->places || !state->marks || !state->sums)
        return fail(err, "out of memory for the state of layer %d", layer->index);
    for (int o = 0; o < params->block; o++) rope_table(s->rope, o, state->places + (size_t)o * table);
    if (params->key == KEY_MEAN)
        layer->warning = "landmark: mean keys stand for the blocks, not trained landmarks";
    return 0;
}

static int landmark_block(const struct attn_layer *layer) {
    const struct landmark_params *params = layer->params;
    return params->key == KEY_LANDMARK ? params->block : 0;
}

static void landmark_stats(const struct attn_layer *layer, struct attn_stats *stats) {
    const struct landmark_params *params = layer->params;
    const struct landmark *state = layer->state;
    size_t marks = (size_t)layer->shape->n_head_kv * (size_t)state->marks_cap * layer->cache.k_row_bytes;
    *stats = (struct attn_stats){
        .bytes = kv_bytes(&layer->cache) + marks,
        .entries_cached = layer->cache.heads[0].n + state->past / params->block,
        .entries_attended = state->attended,
    };
}

static void landmark_reset(struct attn_layer *layer) {
    struct landmark *state = layer->state;
    state->past = 0;
    memset(state->sums, 0, (size_t)(layer->shape->n_head_kv * layer->shape->head_dim) * sizeof(float));
}

static int landmark_state(struct attn_layer *layer, struct state_io *io, struct error *err) {
    const struct landmark_params *params = layer->params;
    struct landmark *state = layer->state;
    int G = layer->shape->n_head_kv;
    state_int(io, &state->past, 0, 1 << 30);
    if (kv_state(&layer->cache, io, err)) return -1;
    for (int g = 0; g < G; g++)
        if (layer->cache.heads[g].n != count_entries(layer, state->past)) io->failed = true;
    int blocks = state->past / params->block;
    if (!state_has(io, (size_t)blocks, layer->cache.k_row_bytes)) return 0;
    if (!io->saving && reserve_marks(layer, blocks, err)) return -1;
    for (int g = 0; g < G; g++) state_bytes(io, state->marks[g], (size_t)blocks * layer->cache.k_row_bytes);
    state_bytes(io, state->sums, (size_t)(G * layer->shape->head_dim) * sizeof(float));
    return 0;
}

static void landmark_free(struct attn_layer *layer) {
    struct landmark *state = layer->state;
    if (!state) return;
    for (int g = 0; state->marks && g < layer->shape->n_head_kv; g++) free(state->marks[g]);
    void *buffers[] = {state->places, state->shifts, state->marks, state->sums, state->best, state};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) free(buffers[i]);
    layer->state = NULL;
}

const struct attn_mode attn_landmark = {
    .name = "landmark",
    .summary = "landmark tokens retrieve the blocks that a query attends to",
    .params = landmark_table,
    .params_bytes = sizeof(struct landmark_params),
    .init = landmark_init,
    .reserve = landmark_reserve,
    .forward = landmark_forward,
    .stats = landmark_stats,
    .free = landmark_free,
    .reset = landmark_reset,
    .state = landmark_state,
    .landmark_block = landmark_block,
};
