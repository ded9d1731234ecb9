/* topk.c - every query attends to the k keys that score best, after Synk et
 * al., "Exploiting Sparsity for Long Context Inference" (arXiv 2502.06766).
 *
 * Of a row (one token's query in one head) that sees the entries [0, limit),
 * the first few (`sink`) and the newest (`recent`) are attended to in any case.
 * The candidates lie between:
 *
 *     0 .. begin          begin .. end                    end .. limit
 *     sink                the k best of these             recent
 *
 * index=exact scores all candidates. index=page summarises the keys in pages
 * (kernels/sparse.h) and scores only those in the most promising pages, and the
 * newest, which have no page yet. Query heads that share a KV head also share
 * the pages that are read: any of them may ask for one.
 *
 * What depends on memory (scoring keys and pages) is dealt out to the workers
 * in small pieces; what follows is one worker's per KV head or query head. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../alloc.h"
#include "../kernels/sparse.h"
#include "dense.h"
#include "sparse.h"

#define GROUP_ENTRIES (PAGE * PAGE_GROUP)
#define MAX_PROBE 16     /* keys scored per key that is to be found */
#define MIN_PROBED 512   /* keys scored at least */
#define AHEAD 32         /* keys that are on their way from memory while one is scored */
#define PIECE 256        /* chosen keys that a worker scores at a time */
#define CHUNK 1024       /* entries that a worker scores at a time */

enum { PREFILL_DENSE, PREFILL_SPARSE };
enum { INDEX_EXACT, INDEX_PAGE };

struct topk_params {
    int k, recent, sink, prefill, index, recall;
};

/* The pages of one KV head. */
struct pages {
    int n, cap;        /* groups of PAGE_GROUP pages */
    uint8_t *groups;   /* [cap] of page_group_bytes() */
    int *start;        /* [cap * PAGE_GROUP + 1] first entry of each page, and the end of the last */
};

/* With recall=1, summed over rows. One per worker. */
struct measure {
    double rows, recall, mass;
    char padding[40];  /* to a cache line */
};

struct topk {
    const struct sparse_kernels *sparse;
    struct pages *pages;      /* [G], index=page */
    double attended;          /* entries, summed over generated tokens and query heads */
    struct measure *measures; /* [n_threads], recall=1 */
};

/* What a row sees, as indices of entries. */
struct sight {
    int begin, end, limit;
    int n_pages;              /* pages to choose from */
};

/* ---- scratch memory --------------------------------------------------------------- */

struct topk_scratch {
    size_t stride;            /* floats of a row of scores */
    float *scores;            /* [H, stride] of keys, or how far pages reach */
    float *chosen_scores;     /* [H, stride] of the keys in chosen pages */
    int *chosen;              /* [G, stride] these, ascending */
    int *n_chosen;            /* [G] */
    /* Of one worker: */
    float *own, *spare;       /* [stride] */
    int *list, *best;         /* [stride] */
    float *state;             /* of the row in progress */
    uintptr_t end;
};

static struct topk_scratch topk_scratch(const struct attn_layer *layer, int worker) {
    const struct attn_shape *s = layer->shape;
    uintptr_t at = (uintptr_t)layer->scratch;
    struct topk_scratch t = {.stride = ((size_t)s->n_ctx + PAGE_GROUP + 15) / 16 * 16};
    t.scores = take(&at, (size_t)s->n_head * t.stride * sizeof(float));
    t.chosen_scores = take(&at, (size_t)s->n_head * t.stride * sizeof(float));
    t.chosen = take(&at, (size_t)s->n_head_kv * t.stride * sizeof(int));
    t.n_chosen = take(&at, (size_t)s->n_head_kv * sizeof(int));
    for (int i = 0; i <= worker; i++) {
        t.own = take(&at, t.stride * sizeof(float));
        t.spare = take(&at, t.stride * sizeof(float));
        t.list = take(&at, t.stride * sizeof(int));
        t.best = take(&at, t.stride * sizeof(int));
        t.state = take(&at, ATTEND_STATE(s->head_dim) * sizeof(float));
    }
    t.end = at;
    return t;
}

static size_t topk_scratch_bytes(const struct attn_layer *layer) {
    struct attn_layer origin = {.shape = layer->shape};
    return topk_scratch(&origin, layer->shape->n_threads - 1).end;
}

/* ---- what a row sees ---------------------------------------------------------------- */

/* Token i of the batch in KV head g. */
static struct sight see(const struct attn_layer *layer, const struct attn_batch *b, int g, int i) {
    const struct topk_params *params = layer->params;
    const struct topk *topk = layer->state;
    const struct kv_head *head = &layer->cache.heads[g];
    struct sight s = {.limit = head->n + i + 1};
    s.begin = first_at(head->pos, s.limit, params->sink);
    s.end = first_at(head->pos, s.limit, b->pos + i - params->recent + 1);
    if (s.end < s.begin) s.end = s.begin;
    if (params->index == INDEX_PAGE) {
        const struct pages *pages = &topk->pages[g];
        int n = pages->n; /* without those that later tokens of the batch have completed */
        while (n > 0 && pages->start[n * PAGE_GROUP] > s.limit) n--;
        s.n_pages = first_at(pages->start, n * PAGE_GROUP, s.end);
    }
    return s;
}

/* Pages that the query heads of a group read. On SmolLM2 they hold 95 % of each head's 128 best of 8192
 * keys. */
static int pages_to_read(const struct attn_layer *layer) {
    const struct topk_params *params = layer->params;
    int probe = 8 + 2 * group_size(layer);
    int64_t keys = (int64_t)params->k * (probe < MAX_PROBE ? probe : MAX_PROBE);
    if (keys < MIN_PROBED) keys = MIN_PROBED;
    return keys / PAGE < 1 << 28 ? (int)(keys / PAGE) : 1 << 28;
}

/* Whether the row's candidates are chosen with the help of pages: not where most would be read anyway. */
static bool by_pages(const struct attn_layer *layer, const struct sight *s) {
    const struct topk_params *params = layer->params;
    return params->index == INDEX_PAGE && s->end - s->begin > params->k &&
           s->n_pages / 2 > pages_to_read(layer);
}

/* ---- the pages ------------------------------------------------------------------------ */

static int pages_reserve(struct pages *p, int n, int d) {
    if (n <= p->cap) return 0;
    int cap = p->cap + p->cap / 2;
    if (cap < n) cap = n;
    void *groups = realloc(p->groups, (size_t)cap * page_group_bytes(d));
    if (groups) p->groups = groups;
    int *start = realloc(p->start, ((size_t)cap * PAGE_GROUP + 1) * sizeof *start);
    if (start) p->start = start;
    if (!groups || !start) return -1;
    if (p->cap == 0) start[0] = 0;
    p->cap = cap;
    return 0;
}

/* Groups of pages that a head has with n entries. */
static int groups_with(const struct pages *p, int n) {
    int paged = p->n ? p->start[p->n * PAGE_GROUP] : 0;
    return p->n + (n - paged) / GROUP_ENTRIES;
}

static int most_new_groups(const struct attn_layer *layer, const struct attn_batch *b) {
    const struct topk *topk = layer->state;
    int most = 0;
    for (int g = 0; g < layer->shape->n_head_kv; g++) {
        int n = groups_with(&topk->pages[g], layer->cache.heads[g].n + b->n) - topk->pages[g].n;
        if (n > most) most = n;
    }
    return most;
}

/* Makes pages of the entries that have none, the batch's included. Ends with a barrier. */
static void extend_pages(struct attn_layer *layer, const struct attn_batch *b, struct worker *w) {
    const struct topk *topk = layer->state;
    int G = layer->shape->n_head_kv, d = layer->shape->head_dim, most = most_new_groups(layer, b);
    if (most == 0) return;
    for (int item; (item = team_next(w)) < G * most;) {
        int g = item % G, group = topk->pages[g].n + item / G;
        struct pages *p = &topk->pages[g];
        if (group >= groups_with(p, layer->cache.heads[g].n + b->n)) continue;
        struct kv_view kv = kv_view(&layer->cache, g);
        int begin = p->start[p->n * PAGE_GROUP] + item / G * GROUP_ENTRIES;
        page_group_build(layer->shape->attend, &kv, begin, p->groups + (size_t)group * page_group_bytes(d));
        for (int i = 1; i <= PAGE_GROUP; i++) p->start[group * PAGE_GROUP + i] = begin + i * PAGE;
    }
    team_barrier(w);
    if (w->id == 0)
        for (int g = 0; g < G; g++)
            topk->pages[g].n = groups_with(&topk->pages[g], layer->cache.heads[g].n + b->n);
    team_barrier(w);
}

/* Pages get shorter where entries go, which leaves their ranges valid. When they are half empty, all are made
 * anew. */
static void topk_dropped(struct attn_layer *layer, int head, const int *keep, int n) {
    const struct topk *topk = layer->state;
    if (!topk->pages) return;
    struct pages *p = &topk->pages[head];
    int kept = 0;
    for (int page = 0; page <= p->n * PAGE_GROUP && p->n > 0; page++) {
        while (kept < n && keep[kept] < p->start[page]) kept++;
        p->start[page] = kept;
    }
    if (kept < p->n * GROUP_ENTRIES / 2) {
        p->n = 0;
        p->start[0] = 0;
    }
}

/* ---- first step: scores of keys, or how far pages may reach -------------------------------- */

static void score_keys(const struct attn_layer *layer, const float *q, const struct sight *s, int g,
                       int chunk, float *scores, size_t stride) {
    const struct attn_shape *shape = layer->shape;
    struct kv_view kv = kv_view(&layer->cache, g);
    int begin = chunk * CHUNK, end = begin + CHUNK;
    if (begin < s->begin) begin = s->begin;
    if (end > s->end) end = s->end;
    if (begin < end)
        shape->attend->scores(&kv, begin, end, q, (size_t)shape->head_dim, group_size(layer),
                              scores + begin, stride);
}

static void score_pages(const struct attn_layer *layer, const float *q, const struct sight *s, int g,
                        int chunk, float *reach, size_t stride) {
    const struct attn_shape *shape = layer->shape;
    const struct topk *topk = layer->state;
    int first = chunk * (CHUNK / GROUP_ENTRIES), last = first + CHUNK / GROUP_ENTRIES;
    for (int i = first; i < last && i * PAGE_GROUP < s->n_pages; i++) {
        const uint8_t *pages = topk->pages[g].groups + (size_t)i * page_group_bytes(shape->head_dim);
        topk->sparse->reach(shape->head_dim, pages, q, (size_t)shape->head_dim, group_size(layer),
                            reach + i * PAGE_GROUP, stride);
    }
}

/* A chunk of entries, or the pages of as many, for all query heads of a group. */
static void score_chunk(const struct attn_layer *layer, const struct attn_batch *b, int token, int g,
                        int chunk, const struct topk_scratch *t) {
    const struct topk_params *params = layer->params;
    struct sight s = see(layer, b, g, token);
    int head = g * group_size(layer);
    if (s.end - s.begin <= params->k) return;
    (by_pages(layer, &s) ? score_pages : score_keys)(layer, query(layer, b, token, head), &s, g, chunk,
                                                     t->scores + (size_t)head * t->stride, t->stride);
}

/* ---- second step, by pages: the keys in the most promising pages ------------------------------ */

static int append_range(int *list, int n, int begin, int end) {
    for (int i = begin; i < end; i++) list[n++] = i;
    return n;
}

/* The candidates in the pages that reach furthest for any query head of the group, and those that have no
 * page. */
static void choose_pages(const struct attn_layer *layer, const struct sight *s, int g,
                         const struct topk_scratch *t) {
    const struct topk *topk = layer->state;
    const int *start = topk->pages[g].start;
    const float *reach = t->scores + (size_t)(g * group_size(layer)) * t->stride;
    int n_read = pages_to_read(layer), *chosen = t->chosen + (size_t)g * t->stride, n = 0;
    for (int h = 0; h < group_size(layer); h++, reach += t->stride) {
        /* Relative to what makes a page one of the best for this head. */
        float least = guess_least(topk->sparse, reach, s->n_pages, n_read, t->spare);
        for (int i = 0; i < s->n_pages; i++) {
            float excess = reach[i] - least;
            t->own[i] = h == 0 || excess > t->own[i] ? excess : t->own[i];
        }
    }
    int n_best = select_best(topk->sparse, t->own, s->n_pages, n_read, t->best, t->spare);
    for (int i = 0; i < n_best; i++) {
        int begin = start[t->best[i]], end = start[t->best[i] + 1];
        n = append_range(chosen, n, begin > s->begin ? begin : s->begin, end < s->end ? end : s->end);
    }
    int rest = start[s->n_pages];
    t->n_chosen[g] = append_range(chosen, n, rest > s->begin ? rest : s->begin, s->end);
}

/* Asks for a row that lies anywhere in memory before it is needed. */
static void prefetch_row(const uint8_t *rows, int i, size_t row_bytes) {
    const uint8_t *row = rows + (size_t)i * row_bytes;
    for (size_t byte = 0; byte < row_bytes; byte += 64) __builtin_prefetch(row + byte);
}

/* Scores of chosen keys [first, last) for all query heads of a group. */
static void score_chosen(const struct attn_layer *layer, const float *q, int g, int first, int last,
                         const struct topk_scratch *t) {
    const struct attn_shape *shape = layer->shape;
    const int *chosen = t->chosen + (size_t)g * t->stride;
    float *scores = t->chosen_scores + (size_t)(g * group_size(layer)) * t->stride;
    struct kv_view kv = kv_view(&layer->cache, g);
    for (int i = first, next, ahead = first; i < last; i = next) {
        for (; ahead < last && ahead < i + AHEAD; ahead++) prefetch_row(kv.k, chosen[ahead], kv.k_row_bytes);
        for (next = i + 1; next < last && chosen[next] == chosen[next - 1] + 1; next++) ;
        shape->attend->scores(&kv, chosen[i], chosen[next - 1] + 1, q, (size_t)shape->head_dim,
                              group_size(layer), scores + i, t->stride);
    }
}

static void read_pages(const struct attn_layer *layer, const struct attn_batch *b, int token,
                       struct worker *w) {
    struct topk_scratch t = topk_scratch(layer, w->id);
    int G = layer->shape->n_head_kv, most = 0;
    for (int g; (g = team_next(w)) < G;) {
        struct sight s = see(layer, b, g, token);
        t.n_chosen[g] = 0;
        if (by_pages(layer, &s)) choose_pages(layer, &s, g, &t);
    }
    team_barrier(w);
    for (int g = 0; g < G; g++)
        if (t.n_chosen[g] > most) most = t.n_chosen[g];
    int pieces = (most + PIECE - 1) / PIECE;
    for (int item; (item = team_next(w)) < G * pieces;) {
        int g = item % G, first = item / G * PIECE, last = first + PIECE;
        if (last > t.n_chosen[g]) last = t.n_chosen[g];
        score_chosen(layer, query(layer, b, token, g * group_size(layer)), g, first, last, &t);
    }
    team_barrier(w);
}

/* ---- last step: the k best, and attention to them -------------------------------------------- */

/* What the row attends to, ascending: to t->list. Returns how many. */
static int choose(const struct attn_layer *layer, const struct sight *s, int head,
                  const struct topk_scratch *t) {
    const struct topk_params *params = layer->params;
    const struct topk *topk = layer->state;
    int g = head / group_size(layer), candidates = s->end - s->begin, n;
    size_t row = (size_t)head * t->stride;
    if (candidates <= params->k) return append_range(t->list, 0, 0, s->limit);
    if (by_pages(layer, s)) {
        const int *chosen = t->chosen + (size_t)g * t->stride;
        n = select_best(topk->sparse, t->chosen_scores + row, t->n_chosen[g], params->k, t->best, t->spare);
        for (int i = 0; i < n; i++) t->best[i] = chosen[t->best[i]];
    } else {
        n = select_best(topk->sparse, t->scores + row + s->begin, candidates, params->k, t->best, t->spare);
        for (int i = 0; i < n; i++) t->best[i] += s->begin;
    }
    append_range(t->list, 0, 0, s->begin);
    memcpy(t->list + s->begin, t->best, (size_t)n * sizeof *t->best);
    return append_range(t->list, s->begin + n, s->end, s->limit);
}

/* How many of two ascending lists' elements are in both. */
static int in_both(const int *x, int n, const int *y, int m) {
    int both = 0;
    for (int i = 0, j = 0; i < n && j < m;) {
        both += x[i] == y[j];
        if (x[i] <= y[j]) i++;
        else j++;
    }
    return both;
}

/* Compares what the row attends to, t->list [n], with the exact choice and with all entries. */
static void measure_row(const struct attn_layer *layer, const struct sight *s, int g, const float *q, int n,
                        const struct topk_scratch *t, struct measure *measure) {
    const struct topk_params *params = layer->params;
    const struct topk *topk = layer->state;
    struct kv_view kv = kv_view(&layer->cache, g);
    float *scores = t->own, most = -INFINITY;
    layer->shape->attend->scores(&kv, 0, s->limit, q, 0, 1, scores, 0);
    int candidates = s->end - s->begin;
    int wanted = select_best(topk->sparse, scores + s->begin, candidates, params->k, t->best, t->spare);
    for (int i = 0; i < wanted; i++) t->best[i] += s->begin;
    int found = in_both(t->best, wanted, t->list, n);
    double all = 0, kept = 0;
    for (int i = 0; i < s->limit; i++) most = fmaxf(most, scores[i]);
    for (int i = 0; i < s->limit; i++) all += expf(scores[i] - most);
    for (int i = 0; i < n; i++) kept += expf(scores[t->list[i]] - most);
    measure->rows++;
    measure->recall += wanted ? (double)found / wanted : 1;
    measure->mass += all > 0 ? kept / all : 1;
}

static void attend_row(const struct attn_layer *layer, const struct attn_batch *b, int token, int head,
                       const struct worker *w) {
    const struct attn_shape *s = layer->shape;
    const struct topk *topk = layer->state;
    struct topk_scratch t = topk_scratch(layer, w->id);
    int g = head / group_size(layer);
    struct sight sight = see(layer, b, g, token);
    struct kv_view kv = kv_view(&layer->cache, g);
    const float *q = query(layer, b, token, head);
    int n = choose(layer, &sight, head, &t);
    for (int i = 0; i < n; i++) prefetch_row(kv.v, t.list[i], kv.v_row_bytes);
    attend_init(t.state, s->head_dim);
    s->attend->list(&kv, t.list, n, q, t.state);
    attend_finish(t.state, s->head_dim, b->out + (q - b->q));
    if (topk->measures) measure_row(layer, &sight, g, q, n, &t, &topk->measures[w->id]);
}

static void attend_sparsely(struct attn_layer *layer, const struct attn_batch *b, struct worker *w) {
    struct topk_scratch t = topk_scratch(layer, w->id);
    int G = layer->shape->n_head_kv;
    for (int i = 0; i < b->n; i++) {
        bool pages = false;
        int most = 0;
        for (int g = 0; g < G; g++) {
            struct sight s = see(layer, b, g, i);
            if (s.limit > most) most = s.limit;
            if (by_pages(layer, &s)) pages = true;
        }
        int chunks = (most + CHUNK - 1) / CHUNK;
        for (int item; (item = team_next(w)) < G * chunks;) score_chunk(layer, b, i, item % G, item / G, &t);
        team_barrier(w);
        if (pages) read_pages(layer, b, i, w);
        for (int head; (head = team_next(w)) < layer->shape->n_head;) attend_row(layer, b, i, head, w);
        team_barrier(w);
    }
    if (w->id == 0) kv_advance(&layer->cache, b->n);
    team_barrier(w);
}

/* ---- the mode ----------------------------------------------------------------------------- */

static int topk_init(struct attn_layer *layer, const struct model *model, struct error *err) {
    (void)model;
    const struct topk_params *params = layer->params;
    const struct attn_shape *s = layer->shape;
    struct topk *topk = layer->state = calloc(1, sizeof *topk);
    if (!topk) return fail(err, "out of memory for the state of layer %d", layer->index);
    topk->sparse = sparse_select(kernels_isa(s->kernels));
    if (params->index == INDEX_PAGE) topk->pages = calloc((size_t)s->n_head_kv, sizeof *topk->pages);
    if (params->recall) topk->measures = alloc_zeroed((size_t)s->n_threads * sizeof *topk->measures);
    if ((params->index == INDEX_PAGE && !topk->pages) || (params->recall && !topk->measures))
        return fail(err, "out of memory for the state of layer %d", layer->index);
    return 0;
}

static int topk_reserve(struct attn_layer *layer, const struct attn_batch *b, struct error *err) {
    struct topk *topk = layer->state;
    if (kv_reserve(&layer->cache, b->n, err)) return -1;
    for (int g = 0; topk->pages && g < layer->shape->n_head_kv; g++)
        if (pages_reserve(&topk->pages[g], groups_with(&topk->pages[g], layer->cache.heads[g].n + b->n),
                          layer->shape->head_dim))
            return fail(err, "out of memory for the pages of --attn topk: use index=exact or a smaller "
                        "context (-c)");
    return 0;
}

static double count_attended(const struct attn_layer *layer, const struct attn_batch *b) {
    const struct topk_params *params = layer->params;
    double n = 0;
    for (int g = 0; g < layer->shape->n_head_kv; g++)
        for (int i = 0; i < b->n; i++) {
            struct sight s = see(layer, b, g, i);
            int candidates = s.end - s.begin;
            n += s.limit - candidates + (candidates < params->k ? candidates : params->k);
        }
    return n * group_size(layer);
}

static void topk_forward(struct attn_layer *layer, const struct attn_batch *b, struct worker *w) {
    const struct topk_params *params = layer->params;
    struct topk *topk = layer->state;
    dense_store(layer, b, w);
    team_barrier(w);
    if (topk->pages) extend_pages(layer, b, w);
    if (b->prefill && params->prefill == PREFILL_DENSE) {
        dense_attend(layer, b, w);
        return;
    }
    if (w->id == 0 && !b->prefill) topk->attended += count_attended(layer, b);
    attend_sparsely(layer, b, w);
}

static void topk_stats(const struct attn_layer *layer, struct attn_stats *stats) {
    const struct topk *topk = layer->state;
    double entries = 0;
    size_t bytes = kv_bytes(&layer->cache);
    for (int g = 0; g < layer->cache.n_head_kv; g++) {
        entries += layer->cache.heads[g].n;
        if (topk->pages)
            bytes += (size_t)topk->pages[g].cap *
                     (page_group_bytes(layer->shape->head_dim) + PAGE_GROUP * sizeof(int));
    }
    *stats = (struct attn_stats){
        .bytes = bytes,
        .entries_cached = entries / layer->cache.n_head_kv,
        .entries_attended = topk->attended,
    };
    for (int i = 0; topk->measures && i < layer->shape->n_threads; i++) {
        stats->rows_measured += topk->measures[i].rows;
        stats->recall += topk->measures[i].recall;
        stats->mass += topk->measures[i].mass;
    }
}

static void topk_free(struct attn_layer *layer) {
    struct topk *topk = layer->state;
    if (!topk) return;
    for (int g = 0; topk->pages && g < layer->shape->n_head_kv; g++) {
        free(topk->pages[g].groups);
        free(topk->pages[g].start);
    }
    free(topk->pages);
    free(topk->measures);
    free(topk);
    layer->state = NULL;
}

/* Forgets the pages whose entries are gone. */
static void topk_trim(struct attn_layer *layer) {
    const struct topk *topk = layer->state;
    for (int g = 0; topk->pages && g < layer->shape->n_head_kv; g++) {
        struct pages *p = &topk->pages[g];
        while (p->n > 0 && p->start[p->n * PAGE_GROUP] > layer->cache.heads[g].n) p->n--;
    }
}

static void topk_truncate(struct attn_layer *layer, int pos) {
    kv_truncate(&layer->cache, pos);
    topk_trim(layer);
}

/* Pages are made anew after restoring. */
static int topk_state(struct attn_layer *layer, struct state_io *io, struct error *err) {
    return kv_state(&layer->cache, io, err);
}

#define FIELD(name) offsetof(struct topk_params, name)

static const struct param topk_params[] = {
    {"k", PARAM_INT, FIELD(k), 128, 0, 1 << 30, NULL, "attention.topk.k",
     "best keys that a query attends to"},
    {"recent", PARAM_INT, FIELD(recent), 64, 1, 1 << 30, NULL, NULL, "newest keys, always attended to"},
    {"sink", PARAM_INT, FIELD(sink), 4, 0, 1 << 30, NULL, NULL, "positions below this, always attended to"},
    {"prefill", PARAM_CHOICE, FIELD(prefill), PREFILL_DENSE, 0, 0, "dense|sparse", NULL,
     "attention of prompt tokens"},
    {"index", PARAM_CHOICE, FIELD(index), INDEX_PAGE, 0, 0, "exact|page", NULL,
     "score every key, or those in promising pages"},
    {"recall", PARAM_BOOL, FIELD(recall), 0, 0, 1, NULL, NULL,
     "1: compare with the exact choice and with dense attention"},
    {0},
};

const struct attn_mode attn_topk = {
    .name = "topk",
    .summary = "every query attends to the k keys that score best",
    .params = topk_params,
    .params_bytes = sizeof(struct topk_params),
    .evictable = true,
    .scratch_bytes = topk_scratch_bytes,
    .init = topk_init,
    .reserve = topk_reserve,
    .forward = topk_forward,
    .stats = topk_stats,
    .free = topk_free,
    .reset = topk_trim,
    .state = topk_state,
    .dropped = topk_dropped,
    .truncate = topk_truncate,
};
