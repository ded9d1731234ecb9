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
 * (kernels/sparse.h) and scores only those in the pages whose keys may score
 * highest, and the newest, which have no page yet. How many pages are read is
 * fixed by k (pages_to_read()), so that a key of another page that is one of the
 * k best is missed: approximate, and exact up to twice as many keys, where all
 * are scored. recall=1 reports the share of the exact choice that is found.
 * Query heads that share a KV head also share the pages that are read: any of
 * them may ask for one.
 *
 * A token while generating: every step is shared out to the workers, by pieces
 * of KV heads, by KV head or by query head. Tokens of a prompt: each of its
 * searches is one worker's. */
#include <math.h>
#include <stdlib.h>

#include "../alloc.h"
#include "../kernels/sparse.h"
#include "dense.h"
#include "pages.h"
#include "sparse.h"

#define MAX_PROBE 16     /* keys scored per key that is to be found */
#define MIN_PROBED 512   /* keys scored at least */
#define PIECES 8         /* parts of the chosen keys of a KV head, each scored by one worker */
#define CHUNK 1024       /* entries that a worker scores at a time, or the pages of as many */

enum { PREFILL_DENSE, PREFILL_SPARSE };
enum { INDEX_EXACT, INDEX_PAGE };

struct topk_params {
    int k, recent, sink, prefill, index, recall;
};

/* What is done of a token's search in a KV head. */
struct progress {
    struct team_count scored;         /* chunks of entries */
    struct team_count chosen;         /* 1 when it is known which keys are still to be scored */
    struct team_count chosen_scored;  /* pieces of these */
};

struct topk {
    const struct sparse_kernels *sparse;
    struct progress *progress; /* [G], of a generated token */
    struct pages *pages;       /* [G], index=page */
    double attended;           /* entries, summed over generated tokens and query heads */
    struct measure *measures;  /* [n_threads], or NULL where nothing is measured */
};

/* What a row sees, as indices of entries. */
struct sight {
    int begin, end, limit;
    int n_pages;              /* pages to choose from */
};

/* The search for the keys that one token's queries in the heads of one group attend to. */
struct search {
    const struct attn_layer *layer;
    int g;                    /* the KV head */
    const float *q;           /* [group, d] */
    struct sight sight;
    size_t stride;
    float *scores;            /* [group, stride] of keys, or how far pages reach */
    float *chosen_scores;     /* [group, stride] of `chosen` */
    int *chosen;              /* [stride] these, and what is attended to in any case; ascending */
    int *n_chosen;
};

/* ---- scratch memory --------------------------------------------------------------- */

/* Of one worker. */
struct topk_scratch {
    float *own, *spare;       /* [stride] */
    int *list, *best;         /* [stride] */
    float *state;             /* of the row in progress */
};

/* Floats for the scores of all that a row sees. */
static size_t row_stride(const struct attn_shape *s) {
    return ((size_t)s->n_ctx + PAGE_GROUP + 15) / 16 * 16;
}

/* Memory of a search: one for each KV head and, behind those, one for each worker. */
static void take_search(uintptr_t *at, const struct attn_layer *layer, struct search *search) {
    size_t row = row_stride(layer->shape) * sizeof(float), group = (size_t)group_size(layer);
    search->stride = row_stride(layer->shape);
    search->scores = take(at, group * row);
    search->chosen_scores = take(at, group * row);
    search->chosen = take(at, row);
    search->n_chosen = take(at, sizeof *search->n_chosen);
}

static void take_scratch(uintptr_t *at, const struct attn_layer *layer, struct topk_scratch *t) {
    size_t row = row_stride(layer->shape) * sizeof(float);
    t->own = take(at, row);
    t->spare = take(at, row);
    t->list = take(at, row);
    t->best = take(at, row);
    t->state = take(at, ATTEND_STATE(layer->shape->head_dim) * sizeof(float));
}

/* Bytes of a search and of a worker's scratch memory. */
static size_t search_bytes(const struct attn_layer *layer) {
    uintptr_t at = 0;
    struct search search;
    take_search(&at, layer, &search);
    return at;
}

static size_t worker_bytes(const struct attn_layer *layer) {
    uintptr_t at = 0;
    struct topk_scratch t;
    take_scratch(&at, layer, &t);
    return at;
}

static size_t topk_scratch_bytes(const struct attn_layer *layer) {
    size_t G = (size_t)layer->shape->n_head_kv, n_threads = (size_t)layer->shape->n_threads;
    return (G + n_threads) * search_bytes(layer) + n_threads * worker_bytes(layer);
}

static struct topk_scratch topk_scratch(const struct attn_layer *layer, const struct worker *w) {
    struct topk_scratch t;
    size_t searches = (size_t)layer->shape->n_head_kv + (size_t)layer->shape->n_threads;
    uintptr_t at = (uintptr_t)layer->scratch + searches * search_bytes(layer);
    at += (size_t)w->id * worker_bytes(layer);
    take_scratch(&at, layer, &t);
    return t;
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
    if (params->index == INDEX_PAGE) s.n_pages = pages_before(&topk->pages[g], s.limit, s.end);
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

/* The search of a token in KV head g, in the memory of that number. */
static struct search search_for(const struct attn_layer *layer, const struct attn_batch *b, int token, int g,
                                int memory) {
    struct search search = {
        .layer = layer, .g = g, .q = query(layer, b, token, g * group_size(layer)),
        .sight = see(layer, b, g, token),
    };
    uintptr_t at = (uintptr_t)layer->scratch + (size_t)memory * search_bytes(layer);
    take_search(&at, layer, &search);
    return search;
}

/* Makes `search` that of a generated token in KV head g, if it is another's. */
static void turn_to(struct search *search, const struct attn_layer *layer, const struct attn_batch *b, int g) {
    if (search->g != g) *search = search_for(layer, b, 0, g, g);
}

/* ---- the pages follow the entries ------------------------------------------------------- */

static int most_new_groups(const struct attn_layer *layer, const struct attn_batch *b) {
    const struct topk *topk = layer->state;
    int most = 0;
    for (int g = 0; g < layer->shape->n_head_kv; g++) {
        int n = pages_groups(&topk->pages[g], layer->cache.heads[g].n + b->n) - topk->pages[g].n;
        if (n > most) most = n;
    }
    return most;
}

/* Makes pages of the entries that have none, the batch's included. Ends with a barrier. */
static void extend_pages(struct attn_layer *layer, const struct attn_batch *b, struct worker *w) {
    const struct topk *topk = layer->state;
    int G = layer->shape->n_head_kv, most = most_new_groups(layer, b);
    if (most == 0) return;
    for (int item; (item = team_next(w)) < G * most;) {
        int g = item % G, group = topk->pages[g].n + item / G;
        struct kv_view kv = kv_view(&layer->cache, g);
        if (group < pages_groups(&topk->pages[g], layer->cache.heads[g].n + b->n))
            pages_build(&topk->pages[g], group, layer->shape->attend, &kv);
    }
    team_barrier(w);
    if (w->id == 0)
        for (int g = 0; g < G; g++)
            topk->pages[g].n = pages_groups(&topk->pages[g], layer->cache.heads[g].n + b->n);
    team_barrier(w);
}

static void topk_dropped(struct attn_layer *layer, int head, const int *keep, int n) {
    const struct topk *topk = layer->state;
    if (topk->pages) pages_keep(&topk->pages[head], keep, n);
}

/* ---- first step: scores of keys, or how far pages may reach -------------------------------- */

static void score_keys(const struct search *s, int chunk) {
    const struct attn_shape *shape = s->layer->shape;
    struct kv_view kv = kv_view(&s->layer->cache, s->g);
    int begin = chunk * CHUNK, end = begin + CHUNK;
    if (end > s->sight.limit) end = s->sight.limit;
    if (begin < end)
        shape->attend->scores(&kv, begin, end, s->q, (size_t)shape->head_dim, group_size(s->layer),
                              s->scores + begin, s->stride);
}

static void score_pages(const struct search *s, int chunk) {
    const struct topk *topk = s->layer->state;
    int first = chunk * (CHUNK / GROUP_ENTRIES), last = first + CHUNK / GROUP_ENTRIES;
    int d = s->layer->shape->head_dim;
    for (int i = first; i < last && i * PAGE_GROUP < s->sight.n_pages; i++)
        topk->sparse->reach(d, topk->pages[s->g].groups + (size_t)i * page_group_bytes(d), s->q, (size_t)d,
                            group_size(s->layer), s->scores + i * PAGE_GROUP, s->stride);
}

/* A chunk of entries, or the pages of as many, for all query heads of the group. */
static void score_chunk(const struct search *s, int chunk) {
    const struct topk_params *params = s->layer->params;
    if (s->sight.end - s->sight.begin <= params->k) return;
    if (by_pages(s->layer, &s->sight)) score_pages(s, chunk);
    else score_keys(s, chunk);
}

/* ---- second step, by pages: the keys in the most promising pages ------------------------------ */

static int append_range(int *list, int n, int begin, int end) {
    for (int i = begin; i < end; i++) list[n++] = i;
    return n;
}

/* How far pages reach beyond what makes one of the best for a head: most = max(most, reach - least). */
static void raise_to(float *restrict most, const float *restrict reach, float least, int n) {
    for (int i = 0; i < n; i++) {
        float excess = reach[i] - least;
        most[i] = excess > most[i] ? excess : most[i];
    }
}

/* The candidates in the pages that reach furthest for any query head of the group and those that have no page,
 * between the entries that are attended to in any case. */
static void choose_pages(const struct search *s, const struct topk_scratch *t) {
    const struct topk *topk = s->layer->state;
    const struct sight *sight = &s->sight;
    *s->n_chosen = 0;
    if (!by_pages(s->layer, sight)) return;
    const int *start = topk->pages[s->g].start;
    int n_read = pages_to_read(s->layer);
    for (int i = 0; i < sight->n_pages; i++) t->own[i] = -INFINITY;
    for (int h = 0; h < group_size(s->layer); h++) {
        const float *reach = s->scores + (size_t)h * s->stride;
        float least = guess_least(topk->sparse, reach, sight->n_pages, n_read, t->spare);
        raise_to(t->own, reach, least, sight->n_pages);
    }
    int n_best = select_best(topk->sparse, t->own, sight->n_pages, n_read, t->best, t->spare);
    int n = append_range(s->chosen, 0, 0, sight->begin);
    for (int i = 0; i < n_best; i++) {
        int begin = start[t->best[i]], end = start[t->best[i] + 1];
        n = append_range(s->chosen, n, begin > sight->begin ? begin : sight->begin,
                         end < sight->end ? end : sight->end);
    }
    int rest = start[sight->n_pages];
    *s->n_chosen = append_range(s->chosen, n, rest > sight->begin ? rest : sight->begin, sight->limit);
}

/* Scores of one of PIECES parts of the chosen keys, for all query heads of the group. */
static void score_piece(const struct search *s, int piece) {
    const struct attn_shape *shape = s->layer->shape;
    struct kv_view kv = kv_view(&s->layer->cache, s->g);
    int first = (int)((int64_t)*s->n_chosen * piece / PIECES);
    int last = (int)((int64_t)*s->n_chosen * (piece + 1) / PIECES);
    if (first < last)
        shape->attend->score_list(&kv, s->chosen + first, last - first, s->q, (size_t)shape->head_dim,
                                  group_size(s->layer), s->chosen_scores + first, s->stride);
}

/* ---- last step: the k best, and attention to them -------------------------------------------- */

/* The entries that query head h of the group attends to, ascending, to t->list, and their scores to t->own.
 * Returns how many. */
static int choose(const struct search *s, int h, const struct topk_scratch *t) {
    const struct topk_params *params = s->layer->params;
    const struct topk *topk = s->layer->state;
    const struct sight *sight = &s->sight;
    bool pages = by_pages(s->layer, sight);
    const float *scores = (pages ? s->chosen_scores : s->scores) + (size_t)h * s->stride;
    int scored = pages ? *s->n_chosen : sight->limit, begin = sight->begin;
    int end = scored - (sight->limit - sight->end);
    int n = append_range(t->list, 0, 0, begin);
    int n_best = select_best(topk->sparse, scores + begin, end - begin, params->k, t->list + n, t->spare);
    for (int i = 0; i < n_best; i++) t->list[n++] += begin;
    n = append_range(t->list, n, end, scored);
    for (int i = 0; i < n; i++) t->own[i] = scores[t->list[i]];
    if (pages)
        for (int i = 0; i < n; i++) t->list[i] = s->chosen[t->list[i]];
    return n;
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

/* Compares the candidates among the entries that a row attends to, t->list [n], with the exact choice, and all that
 * it attends to with all entries. */
static void measure_row(const struct search *s, const float *q, int n, const struct topk_scratch *t,
                        struct measure *measure) {
    const struct topk_params *params = s->layer->params;
    const struct topk *topk = s->layer->state;
    const struct sight *sight = &s->sight;
    int candidates = sight->end - sight->begin;
    measure->rows++;
    measure->mass += mass_kept(s->layer, s->g, q, sight->limit, t->state, t->own);
    int wanted = 0;
    if (candidates > params->k)
        wanted = select_best(topk->sparse, t->own + sight->begin, candidates, params->k, t->best, t->spare);
    for (int i = 0; i < wanted; i++) t->best[i] += sight->begin;
    measure->recall += wanted ? (double)in_both(t->best, wanted, t->list, n) / wanted : 1;
}

static void attend_row(const struct search *s, const struct attn_batch *b, int h, const struct worker *w) {
    const struct attn_shape *shape = s->layer->shape;
    const struct topk_params *params = s->layer->params;
    const struct topk *topk = s->layer->state;
    const struct sight *sight = &s->sight;
    struct topk_scratch t = topk_scratch(s->layer, w);
    struct kv_view kv = kv_view(&s->layer->cache, s->g);
    const float *q = s->q + h * shape->head_dim;
    struct attend_row row = {.q = q, .state = t.state, .limit = sight->limit};
    int n = 0;
    attend_init(t.state, shape->head_dim);
    if (sight->end - sight->begin <= params->k) {
        shape->attend->range(&kv, 0, sight->limit, &row, 1);
    } else {
        n = choose(s, h, &t);
        shape->attend->list(&kv, t.list, t.own, n, t.state);
    }
    attend_finish(t.state, shape->head_dim, b->out + (q - b->q));
    if (topk->measures) measure_row(s, q, n, &t, &topk->measures[w->id]);
}

/* ---- all steps ------------------------------------------------------------------------------ */

static int chunks_of(int n) { return (n + CHUNK - 1) / CHUNK; }

/* One token: the workers share each step, and wait for what an item needs rather than for each other. Most have the
 * same KV heads in each step, neighbouring parts of memory that are still in their caches. */
static void attend_one(const struct attn_layer *layer, const struct attn_batch *b, struct worker *w) {
    const struct topk *topk = layer->state;
    struct topk_scratch t = topk_scratch(layer, w);
    int G = layer->shape->n_head_kv, group = group_size(layer), most = 0;
    for (int g = 0; g < G; g++) {
        int limit = see(layer, b, g, 0).limit;
        if (limit > most) most = limit;
    }
    int chunks = chunks_of(most), begin, end;
    struct search s = {.g = -1};
    worker_range(w, G * chunks, 1, &begin, &end);
    for (int item = begin; item < end; item++) {
        turn_to(&s, layer, b, item / chunks);
        score_chunk(&s, item % chunks);
        team_done(w, &topk->progress[s.g].scored);
    }
    worker_range(w, G, 1, &begin, &end);
    for (int g = begin; g < end; g++) {
        turn_to(&s, layer, b, g);
        team_await(w, &topk->progress[g].scored, chunks);
        choose_pages(&s, &t);
        team_done(w, &topk->progress[g].chosen);
    }
    for (int item; (item = team_next(w)) < G * PIECES;) {
        turn_to(&s, layer, b, item / PIECES);
        team_await(w, &topk->progress[s.g].chosen, 1);
        score_piece(&s, item % PIECES);
        team_done(w, &topk->progress[s.g].chosen_scored);
    }
    worker_range(w, G * group, 1, &begin, &end);
    for (int item = begin; item < end; item++) {
        turn_to(&s, layer, b, item / group);
        team_await(w, &topk->progress[s.g].chosen_scored, PIECES);
        attend_row(&s, b, item % group, w);
    }
    team_barrier(w);
}

/* Several tokens: a search is one worker's. */
static void attend_several(const struct attn_layer *layer, const struct attn_batch *b, struct worker *w) {
    struct topk_scratch t = topk_scratch(layer, w);
    int G = layer->shape->n_head_kv;
    for (int item; (item = team_next(w)) < G * b->n;) {
        struct search s = search_for(layer, b, item / G, item % G, G + w->id);
        for (int chunk = 0; chunk < chunks_of(s.sight.limit); chunk++) score_chunk(&s, chunk);
        choose_pages(&s, &t);
        for (int piece = 0; piece < PIECES; piece++) score_piece(&s, piece);
        for (int h = 0; h < group_size(layer); h++) attend_row(&s, b, h, w);
    }
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
    topk->progress = alloc_zeroed((size_t)s->n_head_kv * sizeof *topk->progress);
    bool measure = params->recall || s->measure;
    if (measure) topk->measures = alloc_zeroed((size_t)s->n_threads * sizeof *topk->measures);
    if (!topk->progress || (params->index == INDEX_PAGE && !topk->pages) || (measure && !topk->measures))
        return fail(err, "out of memory for the state of layer %d", layer->index);
    return 0;
}

static int topk_reserve(struct attn_layer *layer, const struct attn_batch *b, struct error *err) {
    struct topk *topk = layer->state;
    if (kv_reserve(&layer->cache, b->n, err)) return -1;
    for (int g = 0; topk->pages && g < layer->shape->n_head_kv; g++)
        if (pages_reserve(&topk->pages[g], layer->cache.heads[g].n + b->n, layer->shape->head_dim))
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
    if (w->id == 0) memset(topk->progress, 0, (size_t)layer->shape->n_head_kv * sizeof *topk->progress);
    team_barrier(w);
    if (topk->pages) extend_pages(layer, b, w);
    if (b->prefill && params->prefill == PREFILL_DENSE) {
        dense_attend(layer, b, w);
        return;
    }
    if (w->id == 0 && !b->prefill) topk->attended += count_attended(layer, b);
    if (b->n == 1) attend_one(layer, b, w);
    else attend_several(layer, b, w);
    if (w->id == 0) kv_advance(&layer->cache, b->n);
    team_barrier(w);
}

static void topk_stats(const struct attn_layer *layer, struct attn_stats *stats) {
    const struct topk *topk = layer->state;
    double entries = 0;
    size_t bytes = kv_bytes(&layer->cache);
    for (int g = 0; g < layer->cache.n_head_kv; g++) {
        entries += layer->cache.heads[g].n;
        if (topk->pages) bytes += pages_bytes(&topk->pages[g], layer->shape->head_dim);
    }
    *stats = (struct attn_stats){
        .bytes = bytes,
        .entries_cached = entries / layer->cache.n_head_kv,
        .entries_attended = topk->attended,
    };
    if (topk->measures) measures_add(topk->measures, layer->shape->n_threads, stats);
}

static void topk_free(struct attn_layer *layer) {
    struct topk *topk = layer->state;
    if (!topk) return;
    for (int g = 0; topk->pages && g < layer->shape->n_head_kv; g++) pages_free(&topk->pages[g]);
    free(topk->pages);
    free(topk->progress);
    free(topk->measures);
    free(topk);
    layer->state = NULL;
}

/* Forgets the pages whose entries are gone. */
static void topk_trim(struct attn_layer *layer) {
    const struct topk *topk = layer->state;
    for (int g = 0; topk->pages && g < layer->shape->n_head_kv; g++)
        pages_trim(&topk->pages[g], layer->cache.heads[g].n);
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
     "exact: score every key; page: those in the pages that may score highest (approximate, see recall)"},
    {"recall", PARAM_BOOL, FIELD(recall), 0, 0, 1, NULL, NULL,
     "1: report the share of the exact choice found and of the attention mass kept"},
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
