/* dense.c - ordinary causal attention, as FlashAttention computes it.
 *
 * Few tokens (decoding): the KV heads' entries are cut into some MAX_CHUNKS
 * chunks in all. A worker takes a row of them, so that it reads on where it
 * was, as memory is fast only once it has been read from for a while; attends
 * to each with all query heads of the group; and the pieces are merged in order.
 *
 * Many tokens (prompts): the context goes by in panels. The workers pack a
 * panel of every head's entries, then take tiles of query rows and let them
 * attend to it. Sizes depend on the shape only, never on the number of
 * threads. */
#include "dense.h"

#include <stdlib.h>
#include <string.h>

#define FEW_ROWS 16         /* rows (tokens x group) up to which the decoding form is used */
#define MAX_CHUNKS 32       /* of all KV heads; rounded up to 4 of each or a multiple, which are shared out evenly */
#define MIN_CHUNK 64        /* entries */
#define TILE 48             /* query rows that a worker takes at a time */
#define PANEL 1024          /* entries of a head that are packed at a time */
#define PANEL_BYTES (8 << 20) /* fewer where the panels of all heads would take more than this */

struct dense {
    double attended; /* entries, summed over generated tokens and query heads */
};

/* Where things lie in the scratch memory of a session. */
struct plan {
    int group;          /* query heads per KV head */
    size_t state;       /* floats of one row's state */
    int panel;          /* entries per panel: a multiple of ATTEND_BLOCK */
    size_t block_bytes;
    size_t states_bytes, panels_bytes;
};

static int chunks_of_head(const struct attn_shape *s) {
    return (MAX_CHUNKS + 4 * s->n_head_kv - 1) / (4 * s->n_head_kv) * 4;
}

static struct plan make_plan(const struct attn_shape *s) {
    struct plan p = {
        .group = s->n_head / s->n_head_kv,
        .state = ATTEND_STATE(s->head_dim),
        .panel = PANEL,
        .block_bytes = s->attend->block_bytes(s->head_dim),
    };
    while (p.panel > 2 * ATTEND_BLOCK &&
           (size_t)p.panel / ATTEND_BLOCK * p.block_bytes * (size_t)s->n_head_kv > PANEL_BYTES)
        p.panel -= ATTEND_BLOCK;
    size_t few = (size_t)(p.group > FEW_ROWS ? p.group : FEW_ROWS) * (size_t)(chunks_of_head(s) * s->n_head_kv);
    size_t many = (size_t)s->max_batch * (size_t)s->n_head;
    p.states_bytes = (few > many ? few : many) * p.state * sizeof(float);
    p.panels_bytes = (size_t)p.panel / ATTEND_BLOCK * p.block_bytes * (size_t)s->n_head_kv;
    return p;
}

size_t attn_scratch_bytes(const struct attn_shape *shape) {
    /* A mode may attend densely with its first KV heads only, for which panels can be longer. */
    struct attn_shape part = *shape;
    size_t most = 0;
    for (part.n_head_kv = 1; part.n_head_kv <= shape->n_head_kv; part.n_head_kv++) {
        part.n_head = shape->n_head / shape->n_head_kv * part.n_head_kv;
        struct plan p = make_plan(&part);
        if (p.states_bytes + p.panels_bytes > most) most = p.states_bytes + p.panels_bytes;
    }
    return most;
}

void dense_store(struct attn_layer *layer, const struct attn_batch *b, struct worker *w) {
    const struct attn_shape *s = layer->shape;
    int H = s->n_head, G = s->n_head_kv, d = s->head_dim, begin, end;
    worker_range(w, b->n * (H + G), 1, &begin, &end);
    for (int item = begin; item < end; item++) { /* a token's query in one head, or its key and value in a KV head */
        int i = item / (H + G), h = item % (H + G), g = h - H;
        const float *table = b->rope + (size_t)i * 2 * (size_t)s->rope->n_pairs;
        if (h < H) {
            float *q = b->q + ((size_t)i * (size_t)H + (size_t)h) * (size_t)d;
            rope_rotate(s->rope, table, q);
            for (int c = 0; c < d; c++) q[c] *= s->scale;
        } else {
            size_t row = ((size_t)i * (size_t)G + (size_t)g) * (size_t)d;
            rope_rotate(s->rope, table, b->k + row);
            kv_write(&layer->cache, g, layer->cache.heads[g].n + i, b->pos + i, b->k + row, b->v + row);
        }
    }
}

/* Row r of a KV head's queries: token r / group, query head r % group of the group. */
static struct attend_row query_row(const struct attn_layer *layer, const struct attn_batch *b,
                                   const struct plan *p, int g, int r, float *state) {
    const struct attn_shape *s = layer->shape;
    int token = r / p->group, head = g * p->group + r % p->group;
    return (struct attend_row){
        .q = b->q + ((size_t)token * (size_t)s->n_head + (size_t)head) * (size_t)s->head_dim,
        .state = state,
        .limit = layer->cache.heads[g].n + token + 1,
    };
}

static void finish_row(const struct attn_layer *layer, const struct attn_batch *b, const struct plan *p,
                       int g, int r, const float *state) {
    const struct attn_shape *s = layer->shape;
    int token = r / p->group, head = g * p->group + r % p->group;
    attend_finish(state, s->head_dim,
                  b->out + ((size_t)token * (size_t)s->n_head + (size_t)head) * (size_t)s->head_dim);
}

/* ---- few tokens ---------------------------------------------------------------- */

static int most_entries(const struct attn_layer *layer) {
    int most = 0;
    for (int g = 0; g < layer->shape->n_head_kv; g++)
        if (layer->cache.heads[g].n > most) most = layer->cache.heads[g].n;
    return most;
}

static void few_rows(struct attn_layer *layer, const struct attn_batch *b, const struct plan *p,
                     struct worker *w) {
    const struct attn_shape *s = layer->shape;
    int G = s->n_head_kv, m = b->n * p->group, n = most_entries(layer) + b->n;
    int n_chunks = (n + MIN_CHUNK - 1) / MIN_CHUNK, most_chunks = chunks_of_head(s);
    if (n_chunks > most_chunks) n_chunks = most_chunks;
    int chunk = ((n + n_chunks - 1) / n_chunks + 15) / 16 * 16; /* of keys that are read 16 at a time */
    n_chunks = (n + chunk - 1) / chunk;
    float *states = layer->scratch; /* [G, n_chunks, m, state] */

    int first_item, last_item;
    worker_range(w, G * n_chunks, 1, &first_item, &last_item);
    for (int item = first_item; item < last_item; item++) {
        int g = item / n_chunks, begin = item % n_chunks * chunk, end = begin + chunk;
        struct kv_view kv = kv_view(&layer->cache, g);
        if (item + 1 < last_item) {
            const struct kv_view then = kv_view(&layer->cache, (item + 1) / n_chunks);
            kv_read_then(&kv, &then, (item + 1) % n_chunks * chunk);
        } else {
            kv.next_k = w->soon;
        }
        struct attend_row rows[FEW_ROWS];
        float *piece = states + (size_t)item * (size_t)m * p->state;
        if (end > layer->cache.heads[g].n + b->n) end = layer->cache.heads[g].n + b->n;
        for (int first = 0; first < m; first += FEW_ROWS) {
            int count = m - first < FEW_ROWS ? m - first : FEW_ROWS;
            for (int r = 0; r < count; r++) {
                rows[r] = query_row(layer, b, p, g, first + r, piece + (size_t)(first + r) * p->state);
                attend_init(rows[r].state, s->head_dim);
            }
            s->attend->range(&kv, begin, end, rows, count);
        }
    }
    team_barrier(w);
    worker_range(w, G * m, 1, &first_item, &last_item);
    for (int item = first_item; item < last_item; item++) {
        int g = item / m, r = item % m;
        float *state = states + ((size_t)g * (size_t)n_chunks * (size_t)m + (size_t)r) * p->state;
        for (int c = 1; c < n_chunks; c++)
            attend_merge(state, state + (size_t)c * (size_t)m * p->state, s->head_dim);
        finish_row(layer, b, p, g, r, state);
    }
}

/* ---- many tokens --------------------------------------------------------------- */

/* Packs entries [begin, begin + panel) of every head, or as many as there are. */
static void pack_panels(const struct attn_layer *layer, const struct attn_batch *b, const struct plan *p,
                        char *panels, int begin, struct worker *w) {
    int G = layer->shape->n_head_kv, blocks = p->panel / ATTEND_BLOCK;
    for (int item; (item = team_next(w)) < G * blocks;) {
        int g = item % G, first = begin + item / G * ATTEND_BLOCK;
        int n = layer->cache.heads[g].n + b->n - first;
        if (n <= 0) continue;
        struct kv_view kv = kv_view(&layer->cache, g);
        layer->shape->attend->pack(&kv, first, n < ATTEND_BLOCK ? n : ATTEND_BLOCK,
                                   panels + (size_t)(g * blocks + item / G) * p->block_bytes);
    }
}

static void many_rows(struct attn_layer *layer, const struct attn_batch *b, const struct plan *p,
                      struct worker *w) {
    const struct attn_shape *s = layer->shape;
    int G = s->n_head_kv, m = b->n * p->group, n_most = most_entries(layer) + b->n;
    int tiles = (m + TILE - 1) / TILE, blocks = p->panel / ATTEND_BLOCK;
    float *states = layer->scratch; /* [G, m, state] */
    char *panels = (char *)layer->scratch + p->states_bytes; /* [G, blocks, block_bytes] */

    for (int begin = 0; begin < n_most; begin += p->panel) {
        if (begin > 0) team_barrier(w);
        pack_panels(layer, b, p, panels, begin, w);
        team_barrier(w);
        for (int item; (item = team_next(w)) < G * tiles;) {
            int g = item % G, first = item / G * TILE, count = m - first < TILE ? m - first : TILE;
            int n = layer->cache.heads[g].n + b->n - begin;
            struct attend_row rows[TILE];
            for (int r = 0; r < count; r++) {
                rows[r] = query_row(layer, b, p, g, first + r,
                                    states + ((size_t)g * (size_t)m + (size_t)(first + r)) * p->state);
                if (begin == 0) attend_init(rows[r].state, s->head_dim);
            }
            if (n > 0)
                s->attend->rows(s->head_dim, panels + (size_t)(g * blocks) * p->block_bytes, begin,
                                n < p->panel ? n : p->panel, rows, count);
            if (begin + p->panel >= n_most)
                for (int r = 0; r < count; r++) finish_row(layer, b, p, g, first + r, rows[r].state);
        }
    }
    team_barrier(w);
}

/* ---- the mode ------------------------------------------------------------------ */

void dense_attend(struct attn_layer *layer, const struct attn_batch *b, struct worker *w) {
    const struct attn_shape *s = layer->shape;
    struct plan p = make_plan(s);
    if (b->n == 1 || b->n * p.group <= FEW_ROWS) few_rows(layer, b, &p, w);
    else many_rows(layer, b, &p, w);
    /* Others may still be finishing rows, but none of them asks how many entries there were. */
    if (w->id == 0) kv_advance(&layer->cache, b->n);
    team_barrier(w);
}

static int dense_init(struct attn_layer *layer, const struct model *model, struct error *err) {
    (void)model;
    layer->cache.store = layer->shape->attend->store;
    layer->state = calloc(1, sizeof(struct dense));
    return layer->state ? 0 : fail(err, "out of memory for the state of layer %d", layer->index);
}

static int dense_reserve(struct attn_layer *layer, const struct attn_batch *b, struct error *err) {
    return kv_reserve(&layer->cache, b->n, err);
}

static void dense_forward(struct attn_layer *layer, const struct attn_batch *b, struct worker *w) {
    struct dense *dense = layer->state;
    if (w->id == 0 && !b->prefill)
        for (int g = 0; g < layer->shape->n_head_kv; g++)
            for (int i = 1; i <= b->n; i++)
                dense->attended += (double)(layer->cache.heads[g].n + i) *
                                   (layer->shape->n_head / layer->shape->n_head_kv);
    dense_store(layer, b, w);
    team_barrier(w);
    dense_attend(layer, b, w);
}

static void dense_stats(const struct attn_layer *layer, struct attn_stats *stats) {
    const struct dense *dense = layer->state;
    double entries = 0;
    for (int g = 0; g < layer->cache.n_head_kv; g++) entries += layer->cache.heads[g].n;
    *stats = (struct attn_stats){
        .bytes = kv_bytes(&layer->cache),
        .entries_cached = entries / layer->cache.n_head_kv,
        .entries_attended = dense->attended,
    };
}

static void dense_free(struct attn_layer *layer) {
    free(layer->state);
    layer->state = NULL;
}

static int dense_state(struct attn_layer *layer, struct state_io *io, struct error *err) {
    return kv_state(&layer->cache, io, err);
}

static void dense_truncate(struct attn_layer *layer, int pos) { kv_truncate(&layer->cache, pos); }

const struct attn_mode attn_dense = {
    .name = "dense",
    .summary = "every token attends to all before it",
    .evictable = true,
    .init = dense_init,
    .reserve = dense_reserve,
    .forward = dense_forward,
    .stats = dense_stats,
    .state = dense_state,
    .truncate = dense_truncate,
    .free = dense_free,
};
