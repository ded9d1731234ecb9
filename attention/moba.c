/* moba.c - mixture of block attention: Lu et al., "MoBA" (arXiv 2502.13189), as
 * in moba_naive.py of MoonshotAI/MoBA.
 *
 * Positions are cut into blocks. A query attends to its own block up to itself,
 * and to those past blocks whose mean key it agrees with best. The sum of each
 * block's keys is kept as they come in, in float32 whatever the store's type.
 *
 * Few tokens (decoding): a query head is one worker's.
 *
 * Many tokens (prompts): the query rows of a KV head are cut into slices. A
 * slice is one worker's, who finds each row's blocks, turns that into each
 * block's rows, and for one block after the other lets all its rows attend to
 * it at once. */
#include <stdlib.h>
#include <string.h>

#include "../alloc.h"
#include "../kernels/sparse.h"
#include "dense.h"
#include "sparse.h"

#define FEW_ROWS 16     /* tokens x group up to which the decoding form is used */
#define SLICE 768       /* query rows: many, so that each block has enough of them */
#define PACKED 512      /* entries of a block that are packed at a time */
#define MIN_PACKED 8    /* rows for which packing a block's entries doesn't pay */

enum { DECODE_SPARSE, DECODE_DENSE };

struct moba_params {
    int block, topk, decode, mass;
};

/* The blocks of one KV head that have entries, by position. */
struct blocks {
    int n, cap;
    int *id;        /* [cap] positions divided by the block size, ascending */
    int *start;     /* [cap + 1] the block's first entry; the next one's is its end */
    float *sum;     /* [cap, d] of its keys */
};

struct moba {
    const struct sparse_kernels *sparse;
    struct blocks *blocks;  /* [G] */
    double *attended;       /* [H] entries, summed over generated tokens */
    struct measure *measures; /* [n_threads], or NULL where nothing is measured */
};

/* ---- scratch memory --------------------------------------------------------------- */

struct moba_scratch {
    int stride;               /* room for the blocks of a context */
    float *states;            /* [H * max_batch, ATTEND_STATE(d)] of query rows */
    /* Of one worker: */
    char *packed;             /* entries of a block */
    float *gates;             /* [group, stride] */
    float *spare;             /* [stride] */
    int *best;                /* [stride] */
    int *begin;               /* [stride + 1] where a block's rows begin in `rows` */
    int *rows;                /* [SLICE * topk] rows of the slice, by the block that they attend to */
    int *chosen;              /* [SLICE, topk] blocks of each row */
    int *n_chosen;            /* [SLICE] */
    struct attend_row *attend;/* [SLICE] */
    float *scores;            /* [n_ctx], to measure with */
    struct measure *measure;  /* or NULL */
    uintptr_t end;
};

static bool measures(const struct attn_layer *layer) {
    const struct moba_params *params = layer->params;
    return params->mass || layer->shape->measure;
}

/* Rows in a slice: whole tokens. */
static int slice_rows(const struct attn_layer *layer) {
    int group = group_size(layer);
    return group < SLICE ? SLICE / group * group : group;
}

static struct moba_scratch moba_scratch(const struct attn_layer *layer, int worker) {
    const struct attn_shape *s = layer->shape;
    const struct moba_params *params = layer->params;
    const struct moba *moba = layer->state;
    struct moba_scratch t = {.stride = s->n_ctx / params->block + 2};
    uintptr_t at = (uintptr_t)layer->scratch;
    size_t stride = (size_t)t.stride, slice = (size_t)slice_rows(layer);
    size_t rows = (size_t)s->max_batch * (size_t)s->n_head;
    size_t most = params->topk < t.stride ? (size_t)params->topk : stride;
    t.states = take(&at, rows * ATTEND_STATE(s->head_dim) * sizeof(float));
    for (int i = 0; i <= worker; i++) {
        t.packed = take(&at, PACKED / ATTEND_BLOCK * s->attend->block_bytes(s->head_dim));
        t.gates = take(&at, (size_t)group_size(layer) * stride * sizeof(float));
        t.spare = take(&at, stride * sizeof(float));
        t.best = take(&at, stride * sizeof(int));
        t.begin = take(&at, (stride + 1) * sizeof(int));
        t.rows = take(&at, slice * most * sizeof(int));
        t.chosen = take(&at, slice * most * sizeof(int));
        t.n_chosen = take(&at, slice * sizeof(int));
        t.attend = take(&at, slice * sizeof(struct attend_row));
        t.scores = take(&at, measures(layer) ? (size_t)s->n_ctx * sizeof(float) : 0);
    }
    if (moba && moba->measures) t.measure = &moba->measures[worker];
    t.end = at;
    return t;
}

static size_t moba_scratch_bytes(const struct attn_layer *layer) {
    struct attn_layer origin = {.shape = layer->shape, .params = layer->params};
    return moba_scratch(&origin, layer->shape->n_threads - 1).end;
}

/* ---- the blocks ----------------------------------------------------------------------- */

static float *block_sum(const struct blocks *blocks, int j, int d) {
    return blocks->sum + (size_t)j * (size_t)d;
}

static int blocks_reserve(struct blocks *blocks, int n, int d) {
    if (n <= blocks->cap) return 0;
    size_t cap = (size_t)blocks->cap + (size_t)blocks->cap / 2;
    if (cap < (size_t)n) cap = (size_t)n;
    int *id = realloc(blocks->id, cap * sizeof *id);
    if (id) blocks->id = id;
    int *start = realloc(blocks->start, (cap + 1) * sizeof *start);
    if (start) blocks->start = start;
    float *sum = realloc(blocks->sum, cap * (size_t)d * sizeof *sum);
    if (sum) blocks->sum = sum;
    if (!id || !start || !sum) return -1;
    blocks->cap = (int)cap;
    return 0;
}

/* Adds an entry behind all others. */
static void blocks_add(struct blocks *blocks, int entry, int id, const float *key, int d) {
    int j = blocks->n - 1;
    if (j < 0 || blocks->id[j] != id) {
        j = blocks->n++;
        blocks->id[j] = id;
        blocks->start[j] = entry;
        memset(block_sum(blocks, j, d), 0, (size_t)d * sizeof(float));
    }
    blocks->start[j + 1] = entry + 1;
    float *sum = block_sum(blocks, j, d);
    for (int c = 0; c < d; c++) sum[c] += key[c];
}

/* Sum of the keys of the n entries that `index` lists, as they are stored. */
static void sum_stored(const struct attn_layer *layer, int g, const int *index, int n, float *sum) {
    int d = layer->shape->head_dim;
    float key[KV_MAX_DIM];
    memset(sum, 0, (size_t)d * sizeof *sum);
    for (int i = 0; i < n; i++) {
        kv_key(&layer->cache, g, index[i], key);
        for (int c = 0; c < d; c++) sum[c] += key[c];
    }
}

/* Blocks lose entries: those that lose some are summed again, those that lose all are forgotten. */
static void moba_dropped(struct attn_layer *layer, int head, const int *keep, int n) {
    const struct moba *moba = layer->state;
    struct blocks *blocks = &moba->blocks[head];
    int d = layer->shape->head_dim, left = 0, end = 0;
    for (int j = 0; j < blocks->n; j++) {
        int begin = end, before = blocks->start[j + 1] - blocks->start[j];
        end += first_at(keep + begin, n - begin, blocks->start[j + 1]);
        if (end == begin) continue;
        float *sum = block_sum(blocks, left, d);
        if (end - begin < before) sum_stored(layer, head, keep + begin, end - begin, sum);
        else if (left < j) memcpy(sum, block_sum(blocks, j, d), (size_t)d * sizeof *sum);
        blocks->id[left] = blocks->id[j];
        blocks->start[left++] = begin;
    }
    blocks->n = left;
    if (left) blocks->start[left] = end;
}

/* Brings the blocks in line with a cache that has lost its newest entries. */
static void moba_trim(struct attn_layer *layer) {
    const struct moba *moba = layer->state;
    for (int g = 0; g < layer->shape->n_head_kv; g++) {
        struct blocks *blocks = &moba->blocks[g];
        int n = layer->cache.heads[g].n;
        while (blocks->n > 0 && blocks->start[blocks->n - 1] >= n) blocks->n--;
        if (blocks->n == 0 || blocks->start[blocks->n] == n) continue;
        int last = blocks->n - 1, begin = blocks->start[last];
        float key[KV_MAX_DIM];
        blocks->n = last;
        for (int i = begin; i < n; i++) {
            kv_key(&layer->cache, g, i, key);
            blocks_add(blocks, i, blocks->id[last], key, layer->shape->head_dim);
        }
    }
}

/* Takes the batch's keys into their blocks. Ends with a barrier. */
static void add_keys(struct attn_layer *layer, const struct attn_batch *b, struct worker *w) {
    const struct attn_shape *s = layer->shape;
    const struct moba_params *params = layer->params;
    const struct moba *moba = layer->state;
    for (int g; (g = team_next(w)) < s->n_head_kv;)
        for (int i = 0; i < b->n; i++) {
            const float *key = b->k + ((size_t)i * (size_t)s->n_head_kv + (size_t)g) * (size_t)s->head_dim;
            int entry = layer->cache.heads[g].n + i, id = (b->pos + i) / params->block;
            blocks_add(&moba->blocks[g], entry, id, key, s->head_dim);
        }
    team_barrier(w);
}

/* ---- which blocks a row attends to --------------------------------------------------------- */

static int own_block(const struct attn_layer *layer, const struct attn_batch *b, const struct blocks *blocks,
                     int token) {
    const struct moba_params *params = layer->params;
    return first_at(blocks->id, blocks->n, (b->pos + token) / params->block);
}

/* The gates [m, stride] of the first n blocks for m query heads of a token. */
static void gate(const struct attn_layer *layer, const struct blocks *blocks, const float *q, int m, int n,
                 const struct moba_scratch *t) {
    int d = layer->shape->head_dim;
    size_t row_bytes = (size_t)d * sizeof(float);
    struct kv_view sums = {
        .d = d, .type_k = KV_F32, .type_v = KV_F32, .k_row_bytes = row_bytes, .v_row_bytes = row_bytes,
        .k = (const uint8_t *)blocks->sum, .v = (const uint8_t *)blocks->sum,
    };
    layer->shape->attend->scores(&sums, 0, n, q, (size_t)d, m, t->gates, (size_t)t->stride);
    for (int h = 0; h < m; h++)
        for (int j = 0; j < n; j++)
            t->gates[h * t->stride + j] /= (float)(blocks->start[j + 1] - blocks->start[j]);
}

/* The blocks that a row attends to, ascending, given the gates of the `own` ones before its own. Returns how
 * many. */
static int choose(const struct attn_layer *layer, const float *gates, int own, int *chosen,
                  const struct moba_scratch *t) {
    const struct moba_params *params = layer->params;
    const struct moba *moba = layer->state;
    int n = select_best(moba->sparse, gates, own, params->topk - 1, t->best, t->spare);
    memcpy(chosen, t->best, (size_t)n * sizeof *chosen);
    chosen[n] = own;
    return n + 1;
}

/* The row's output, at the place of its query. */
static void finish_row(const struct attn_layer *layer, const struct attn_batch *b, int g,
                       const struct attend_row *row, const struct moba_scratch *t) {
    attend_finish(row->state, layer->shape->head_dim, b->out + (row->q - b->q));
    if (!t->measure) return;
    t->measure->rows++;
    t->measure->mass += mass_kept(layer, g, row->q, row->limit, row->state, t->scores);
}

/* ---- few tokens ------------------------------------------------------------------------------ */

static void few_rows(struct attn_layer *layer, const struct attn_batch *b, struct worker *w) {
    const struct attn_shape *s = layer->shape;
    const struct moba *moba = layer->state;
    struct moba_scratch t = moba_scratch(layer, w->id);
    for (int head; (head = team_next(w)) < s->n_head;) {
        int g = head / group_size(layer);
        const struct blocks *blocks = &moba->blocks[g];
        const struct kv_view kv = kv_view(&layer->cache, g);
        for (int i = 0; i < b->n; i++) {
            struct attend_row row = {
                .q = query(layer, b, i, head), .state = t.states + (size_t)head * ATTEND_STATE(s->head_dim),
                .limit = layer->cache.heads[g].n + i + 1,
            };
            int own = own_block(layer, b, blocks, i);
            gate(layer, blocks, row.q, 1, own, &t);
            int n = choose(layer, t.gates, own, t.chosen, &t);
            attend_init(row.state, s->head_dim);
            for (int j = 0; j < n; j++) {
                int begin = blocks->start[t.chosen[j]], end = blocks->start[t.chosen[j] + 1];
                if (end > row.limit) end = row.limit;
                struct kv_view block = kv;
                if (j + 1 < n) kv_read_then(&block, &kv, blocks->start[t.chosen[j + 1]]);
                s->attend->range(&block, begin, end, &row, 1);
                if (!b->prefill) moba->attended[head] += end - begin;
            }
            finish_row(layer, b, g, &row, &t);
        }
    }
}

/* ---- many tokens ----------------------------------------------------------------------------- */

/* Finds the blocks of rows [first, first + count) of a KV head. */
static void choose_rows(const struct attn_layer *layer, const struct attn_batch *b, int g, int first,
                        int count, int most, const struct moba_scratch *t) {
    const struct moba *moba = layer->state;
    const struct blocks *blocks = &moba->blocks[g];
    int group = group_size(layer);
    for (int r = 0; r < count; r += group) {
        int token = (first + r) / group, own = own_block(layer, b, blocks, token);
        gate(layer, blocks, query(layer, b, token, g * group), group, own, t);
        for (int h = 0; h < group; h++)
            t->n_chosen[r + h] = choose(layer, t->gates + h * t->stride, own, t->chosen + (r + h) * most, t);
    }
}

/* Turns each row's blocks into each block's rows: those of block j are t->rows[t->begin[j]] and on, up to
 * t->begin[j + 1]. */
static void sort_by_block(int n_blocks, int count, int most, const struct moba_scratch *t) {
    memset(t->begin, 0, ((size_t)n_blocks + 1) * sizeof *t->begin);
    for (int r = 0; r < count; r++)
        for (int i = 0; i < t->n_chosen[r]; i++) t->begin[t->chosen[r * most + i] + 1]++;
    for (int j = 0; j < n_blocks; j++) t->begin[j + 1] += t->begin[j];
    memcpy(t->best, t->begin, (size_t)n_blocks * sizeof *t->best); /* where the next row of each goes */
    for (int r = 0; r < count; r++)
        for (int i = 0; i < t->n_chosen[r]; i++) t->rows[t->best[t->chosen[r * most + i]]++] = r;
}

/* Rows attend to the entries [begin, end) of a block. */
static void attend_block(const struct attn_layer *layer, int g, int begin, int end,
                         const struct attend_row *rows, int m, const struct moba_scratch *t) {
    const struct attend_kernels *a = layer->shape->attend;
    struct kv_view kv = kv_view(&layer->cache, g);
    if (m < MIN_PACKED) {
        a->range(&kv, begin, end, rows, m);
        return;
    }
    for (int i = begin; i < end; i += PACKED) {
        int n = end - i < PACKED ? end - i : PACKED;
        for (int j = 0; j < n; j += ATTEND_BLOCK)
            a->pack(&kv, i + j, n - j < ATTEND_BLOCK ? n - j : ATTEND_BLOCK,
                    t->packed + (size_t)(j / ATTEND_BLOCK) * a->block_bytes(kv.d));
        a->rows(kv.d, t->packed, i, n, rows, m);
    }
}

/* Row `row` of a KV head: token * group + query head. */
static struct attend_row row_at(const struct attn_layer *layer, const struct attn_batch *b, int g, int row,
                                const struct moba_scratch *t) {
    int group = group_size(layer), token = row / group;
    size_t state = (size_t)g * (size_t)(b->n * group) + (size_t)row;
    return (struct attend_row){
        .q = query(layer, b, token, g * group + row % group),
        .state = t->states + state * ATTEND_STATE(layer->shape->head_dim),
        .limit = layer->cache.heads[g].n + token + 1,
    };
}

static void attend_slice(const struct attn_layer *layer, const struct attn_batch *b, int g, int first,
                         int count, const struct moba_scratch *t) {
    const struct attn_shape *s = layer->shape;
    const struct moba_params *params = layer->params;
    const struct moba *moba = layer->state;
    const struct blocks *blocks = &moba->blocks[g];
    int most = params->topk < t->stride ? params->topk : t->stride;
    for (int r = 0; r < count; r++) attend_init(row_at(layer, b, g, first + r, t).state, s->head_dim);
    choose_rows(layer, b, g, first, count, most, t);
    sort_by_block(blocks->n, count, most, t);
    for (int j = 0; j < blocks->n; j++) {
        int m = t->begin[j + 1] - t->begin[j];
        if (m == 0) continue;
        for (int i = 0; i < m; i++) t->attend[i] = row_at(layer, b, g, first + t->rows[t->begin[j] + i], t);
        int end = blocks->start[j + 1], limit = t->attend[m - 1].limit;
        attend_block(layer, g, blocks->start[j], end < limit ? end : limit, t->attend, m, t);
    }
    for (int r = 0; r < count; r++) {
        struct attend_row row = row_at(layer, b, g, first + r, t);
        finish_row(layer, b, g, &row, t);
    }
}

static void many_rows(struct attn_layer *layer, const struct attn_batch *b, struct worker *w) {
    struct moba_scratch t = moba_scratch(layer, w->id);
    int G = layer->shape->n_head_kv, m = b->n * group_size(layer), slice = slice_rows(layer);
    int slices = (m + slice - 1) / slice;
    for (int item; (item = team_next(w)) < G * slices;) {
        int first = item / G * slice;
        attend_slice(layer, b, item % G, first, m - first < slice ? m - first : slice, &t);
    }
}

/* ---- the mode ---------------------------------------------------------------------------------- */

static int moba_init(struct attn_layer *layer, const struct model *model, struct error *err) {
    (void)model;
    const struct attn_shape *s = layer->shape;
    struct moba *moba = layer->state = calloc(1, sizeof *moba);
    if (moba) {
        moba->sparse = sparse_select(kernels_isa(s->kernels));
        moba->blocks = calloc((size_t)s->n_head_kv, sizeof *moba->blocks);
        moba->attended = calloc((size_t)s->n_head, sizeof *moba->attended);
        if (measures(layer)) moba->measures = alloc_zeroed((size_t)s->n_threads * sizeof *moba->measures);
    }
    if (!moba || !moba->blocks || !moba->attended || (measures(layer) && !moba->measures))
        return fail(err, "out of memory for the state of layer %d", layer->index);
    return 0;
}

static int moba_reserve(struct attn_layer *layer, const struct attn_batch *b, struct error *err) {
    const struct moba_params *params = layer->params;
    const struct moba *moba = layer->state;
    if (kv_reserve(&layer->cache, b->n, err)) return -1;
    for (int g = 0; g < layer->shape->n_head_kv; g++) {
        int n = moba->blocks[g].n + b->n / params->block + 2;
        if (blocks_reserve(&moba->blocks[g], n, layer->shape->head_dim))
            return fail(err, "out of memory for %d blocks of --attn moba: use larger ones or a smaller "
                        "context (-c)", n);
    }
    return 0;
}

/* Whether no row of the batch has blocks to choose from. */
static bool all_chosen(const struct attn_layer *layer, const struct attn_batch *b) {
    const struct moba_params *params = layer->params;
    const struct moba *moba = layer->state;
    if (params->decode == DECODE_DENSE && !b->prefill) return true;
    for (int g = 0; g < layer->shape->n_head_kv; g++)
        if (moba->blocks[g].n > params->topk) return false;
    return true;
}

/* Keeps the books where every row attends to all that it sees. */
static void count_all(const struct attn_layer *layer, const struct attn_batch *b) {
    const struct moba *moba = layer->state;
    for (int h = 0; h < layer->shape->n_head; h++)
        for (int i = 1; i <= b->n && !b->prefill; i++)
            moba->attended[h] += layer->cache.heads[h / group_size(layer)].n + i;
    if (!moba->measures) return;
    moba->measures[0].rows += (double)b->n * layer->shape->n_head;
    moba->measures[0].mass += (double)b->n * layer->shape->n_head;
}

static void moba_forward(struct attn_layer *layer, const struct attn_batch *b, struct worker *w) {
    dense_store(layer, b, w);
    team_barrier(w);
    add_keys(layer, b, w);
    if (all_chosen(layer, b)) {
        if (w->id == 0) count_all(layer, b);
        dense_attend(layer, b, w);
        return;
    }
    if (b->n == 1 || b->n * group_size(layer) <= FEW_ROWS) few_rows(layer, b, w);
    else many_rows(layer, b, w);
    team_barrier(w);
    if (w->id == 0) kv_advance(&layer->cache, b->n);
    team_barrier(w);
}

static void moba_stats(const struct attn_layer *layer, struct attn_stats *stats) {
    const struct attn_shape *s = layer->shape;
    const struct moba *moba = layer->state;
    *stats = (struct attn_stats){.bytes = kv_bytes(&layer->cache)};
    for (int g = 0; g < s->n_head_kv; g++) {
        stats->bytes += (size_t)moba->blocks[g].cap * (2 * sizeof(int) + (size_t)s->head_dim * sizeof(float));
        stats->entries_cached += (double)layer->cache.heads[g].n / s->n_head_kv;
    }
    for (int h = 0; h < s->n_head; h++) stats->entries_attended += moba->attended[h];
    if (moba->measures) measures_add(moba->measures, s->n_threads, stats);
}

static void moba_free(struct attn_layer *layer) {
    struct moba *moba = layer->state;
    if (!moba) return;
    for (int g = 0; moba->blocks && g < layer->shape->n_head_kv; g++) {
        free(moba->blocks[g].id);
        free(moba->blocks[g].start);
        free(moba->blocks[g].sum);
    }
    free(moba->blocks);
    free(moba->attended);
    free(moba->measures);
    free(moba);
    layer->state = NULL;
}

static void moba_truncate(struct attn_layer *layer, int pos) {
    kv_truncate(&layer->cache, pos);
    moba_trim(layer);
}

static int moba_state(struct attn_layer *layer, struct state_io *io, struct error *err) {
    const struct moba_params *params = layer->params;
    const struct moba *moba = layer->state;
    int d = layer->shape->head_dim;
    if (kv_state(&layer->cache, io, err)) return -1;
    for (int g = 0; g < layer->shape->n_head_kv; g++) {
        const struct kv_head *head = &layer->cache.heads[g];
        struct blocks *blocks = &moba->blocks[g];
        if (!io->saving) {
            /* The blocks follow from the positions; only their sums are in the file. */
            static const float zero[KV_MAX_DIM];
            int n = 0;
            for (int i = 0; i < head->n; i++)
                n += i == 0 || head->pos[i] / params->block != head->pos[i - 1] / params->block;
            if (blocks_reserve(blocks, n, d))
                return fail(err, "out of memory for %d blocks of --attn moba", n);
            for (int i = 0; i < head->n; i++) blocks_add(blocks, i, head->pos[i] / params->block, zero, d);
        }
        if (blocks->n) state_bytes(io, blocks->sum, (size_t)blocks->n * (size_t)d * sizeof(float));
    }
    return 0;
}

#define FIELD(name) offsetof(struct moba_params, name)

static const struct param moba_params[] = {
    {"block", PARAM_INT, FIELD(block), 64, 1, 1 << 30, NULL, "attention.moba.block_size",
     "positions per block"},
    {"topk", PARAM_INT, FIELD(topk), 16, 1, 1 << 30, NULL, "attention.moba.top_k",
     "blocks that a query attends to, its own included"},
    {"decode", PARAM_CHOICE, FIELD(decode), DECODE_SPARSE, 0, 0, "sparse|dense", NULL,
     "attention of generated tokens"},
    {"mass", PARAM_BOOL, FIELD(mass), 0, 0, 1, NULL, NULL, "1: report the attention mass kept"},
    {0},
};

const struct attn_mode attn_moba = {
    .name = "moba",
    .summary = "every query attends to the blocks whose mean key it agrees with best",
    .params = moba_params,
    .params_bytes = sizeof(struct moba_params),
    .evictable = true,
    .scratch_bytes = moba_scratch_bytes,
    .init = moba_init,
    .reserve = moba_reserve,
    .forward = moba_forward,
    .stats = moba_stats,
    .free = moba_free,
    .reset = moba_trim,
    .state = moba_state,
    .dropped = moba_dropped,
    .truncate = moba_truncate,
};
