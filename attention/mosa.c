/* mosa.c - Mixture of Sparse Attention (Piekos et al. 2025, arXiv 2505.00315): every head chooses its
 * tokens.
 *
 * A router gives each token a score r per head (or per KV head: then the query heads of a group share their
 * choice). The k tokens with the highest scores are the head's members; they attend to one another,
 * causally, and their outputs are multiplied by r. For all other tokens the head's output is zero.
 *
 * select=prefix: a token is a member if it is among the k best of those up to itself. Who drops out of the
 * k best never comes back, so k keys and values are all that a head stores: a new member takes the place of
 * the worst. A head goes through a batch token by token, each token attending to the members of its own
 * time.
 *
 * select=sequence: the k best of the whole text, as the paper trains and evaluates; then all tokens must be
 * there before the first output, and nothing can be generated.
 *
 * The paper's hybrid keeps the first query heads dense; their KV heads have an ordinary cache besides. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../alloc.h"
#include "../model.h"
#include "dense.h"

#define TILE 16 /* query rows that attend together */

enum { SELECT_PREFIX, SELECT_SEQUENCE };
enum { ROUTER_FILE, ROUTER_KNORM };

struct mosa_params {
    int k, select, dense_heads, include_first, router;
};

/* What one routed head, or the routed query heads of a group, have chosen. Member i is entry i of the set's
 * head in the store. */
struct set {
    int kv_head, router;     /* KV head, row of the router */
    int head, n_heads;       /* first query head, and how many share the set */
    int worst;               /* the member that would go next, once there are k */
    int cap;
    float *rank;             /* [cap] members' scores; INFINITY for one that must stay */
    double attended;         /* entries, summed over generated tokens and query heads */
};

struct mosa {
    int n_router;            /* scores per token: H or G */
    float *router;           /* [n_router, n_embd], or NULL where the key norm stands in */
    float *scores;           /* [max_batch, n_router] of the batch */
    int n_sets;
    struct set *sets;        /* [n_sets] */
    struct kv_cache members; /* one head per set */

    /* Dense heads: an attention layer of their own with whole groups; heads too many are not used. */
    struct attn_shape dense_shape;
    struct attn_layer dense;
    float *dense_q, *dense_out; /* [max_batch, dense_shape.n_head, d] */
    double dense_attended;
};

static const struct param mosa_table[] = {
    {"k", PARAM_INT, offsetof(struct mosa_params, k), 64, 1, 1 << 28, NULL, "attention.mosa.k",
     "tokens kept per head"},
    {"select", PARAM_CHOICE, offsetof(struct mosa_params, select), SELECT_PREFIX, 0, 0, "prefix|sequence",
     NULL, "the best so far, or the best of the whole text"},
    {"dense_heads", PARAM_INT, offsetof(struct mosa_params, dense_heads), 0, 0, 1 << 16, NULL,
     "attention.mosa.dense_heads", "query heads of each layer that stay dense"},
    {"include_first", PARAM_BOOL, offsetof(struct mosa_params, include_first), 0, 0, 1, NULL,
     "attention.mosa.include_first", "every head keeps token 0"},
    {"router", PARAM_CHOICE, offsetof(struct mosa_params, router), ROUTER_FILE, 0, 0, "file|knorm", NULL,
     "trained scores, or knorm: small keys score high"},
    {0},
};

/* ---- the router ---- */

static float dot(const float *x, const float *y, int n) {
    float sums[8] = {0}, sum = 0;
    int i = 0;
    for (; i + 8 <= n; i += 8)
        for (int j = 0; j < 8; j++) sums[j] += x[i + j] * y[i + j];
    for (; i < n; i++) sum += x[i] * y[i];
    for (int j = 0; j < 8; j++) sum += sums[j];
    return sum;
}

/* r of token i, whose keys are not rotated yet. */
static void route(const struct attn_layer *layer, const struct attn_batch *b, int i) {
    const struct attn_shape *s = layer->shape;
    const struct mosa *state = layer->state;
    int d = s->head_dim;
    float *scores = state->scores + (size_t)i * (size_t)state->n_router;
    for (int row = 0; row < state->n_router; row++) {
        float logit;
        if (state->router) {
            logit = dot(state->router + (size_t)row * (size_t)s->n_embd, b->x + (size_t)i * (size_t)s->n_embd,
                        s->n_embd);
        } else {
            const float *k = b->k + ((size_t)i * (size_t)s->n_head_kv + (size_t)row) * (size_t)d;
            logit = -sqrtf(dot(k, k, d) / (float)d);
        }
        scores[row] = 1 / (1 + expf(-logit));
    }
}

/* ---- membership ---- */

static int find_worst(const struct set *set, const int *pos, int n) {
    const float *rank = set->rank;
    int worst = 0;
    for (int i = 1; i < n; i++)
        if (rank[i] < rank[worst] || (rank[i] == rank[worst] && pos[i] > pos[worst])) worst = i;
    return worst;
}

/* The place of token i of the batch among the members at its time, or -1. It takes the place at once; its
 * key and value are not stored yet. */
static int admit(struct attn_layer *layer, const struct attn_batch *b, int index, int i) {
    const struct mosa_params *params = layer->params;
    struct mosa *state = layer->state;
    struct set *set = &state->sets[index];
    struct kv_head *members = &state->members.heads[index];
    int pos = b->pos + i, place = members->n;
    float rank = state->scores[(size_t)i * (size_t)state->n_router + (size_t)set->router];
    if (params->include_first && pos == 0) rank = INFINITY;
    if (members->n == params->k) {
        if (!(rank > set->rank[set->worst])) return -1; /* an earlier token wins a tie */
        place = set->worst;
    } else {
        members->n++;
    }
    set->rank[place] = rank;
    members->pos[place] = pos;
    if (members->n == params->k) set->worst = find_worst(set, members->pos, members->n);
    return place;
}

/* ---- attention of routed heads ---- */

/* The query heads of a set attend for token i to members [0, limit). */
static void attend_members(const struct attn_layer *layer, const struct attn_batch *b, int index, int i,
                           int limit) {
    const struct attn_shape *s = layer->shape;
    const struct mosa *state = layer->state;
    const struct set *set = &state->sets[index];
    struct kv_view kv = kv_view(&state->members, index);
    int d = s->head_dim;
    size_t first = ((size_t)i * (size_t)s->n_head + (size_t)set->head) * (size_t)d;
    float r = state->scores[(size_t)i * (size_t)state->n_router + (size_t)set->router];
    for (int h = 0; h < set->n_heads; h += TILE) {
        int m = set->n_heads - h < TILE ? set->n_heads - h : TILE;
        _Alignas(64) float states[TILE * ATTEND_STATE(KV_MAX_DIM)];
        struct attend_row rows[TILE];
        for (int j = 0; j < m; j++) {
            rows[j] = (struct attend_row){
                .q = b->q + first + (h + j) * d, .state = states + j * ATTEND_STATE(d), .limit = limit,
            };
            attend_init(rows[j].state, d);
        }
        s->attend->range(&kv, 0, limit, rows, m);
        for (int j = 0; j < m; j++) {
            float *out = b->out + first + (h + j) * d;
            attend_finish(rows[j].state, d, out);
            for (int c = 0; c < d; c++) out[c] *= r;
        }
    }
}

/* Zero for every token of the batch, so that only members need to be written. */
static void clear_out(const struct attn_layer *layer, const struct attn_batch *b, const struct set *set) {
    const struct attn_shape *s = layer->shape;
    for (int i = 0; i < b->n; i++)
        memset(b->out + ((size_t)i * (size_t)s->n_head + (size_t)set->head) * (size_t)s->head_dim, 0,
               (size_t)(set->n_heads * s->head_dim) * sizeof(float));
}

static void store_member(const struct attn_layer *layer, const struct attn_batch *b, int index, int place,
                         int i) {
    const struct attn_shape *s = layer->shape;
    const struct mosa *state = layer->state;
    size_t head = (size_t)i * (size_t)s->n_head_kv + (size_t)state->sets[index].kv_head;
    size_t row = head * (size_t)s->head_dim;
    kv_write(&state->members, index, place, b->pos + i, b->k + row, b->v + row);
}

static void forward_prefix(struct attn_layer *layer, const struct attn_batch *b, int index) {
    struct mosa *state = layer->state;
    struct set *set = &state->sets[index];
    clear_out(layer, b, set);
    for (int i = 0; i < b->n; i++) {
        int place = admit(layer, b, index, i);
        if (place < 0) continue;
        store_member(layer, b, index, place, i);
        int n = state->members.heads[index].n;
        attend_members(layer, b, index, i, n);
        if (!b->prefill) set->attended += (double)n * set->n_heads;
    }
}

static int compare_ints(const void *a, const void *b) {
    int x = *(const int *)a, y = *(const int *)b;
    return (x > y) - (x < y);
}

/* Chooses among the whole batch and stores the members in order. */
static void choose_members(struct attn_layer *layer, const struct attn_batch *b, int index) {
    struct mosa *state = layer->state;
    struct kv_head *members = &state->members.heads[index];
    clear_out(layer, b, &state->sets[index]);
    for (int i = 0; i < b->n; i++) admit(layer, b, index, i);
    qsort(members->pos, (size_t)members->n, sizeof *members->pos, compare_ints);
    for (int j = 0; j < members->n; j++) store_member(layer, b, index, j, members->pos[j] - b->pos);
}

/* ---- dense heads ---- */

/* Token i's rotated queries and its keys and values to where the dense heads look for them. */
static void store_dense(const struct attn_layer *layer, const struct attn_batch *b, int i) {
    const struct attn_shape *s = layer->shape;
    const struct mosa *state = layer->state;
    const struct kv_cache *cache = &state->dense.cache;
    size_t d = (size_t)s->head_dim, n_head = (size_t)state->dense_shape.n_head;
    memcpy(state->dense_q + (size_t)i * n_head * d, b->q + (size_t)i * (size_t)s->n_head * d,
           n_head * d * sizeof(float));
    for (int g = 0; g < state->dense_shape.n_head_kv; g++) {
        size_t row = ((size_t)i * (size_t)s->n_head_kv + (size_t)g) * d;
        kv_write(cache, g, cache->heads[g].n + i, b->pos + i, b->k + row, b->v + row);
    }
}

static void attend_dense(struct attn_layer *layer, const struct attn_batch *b, struct worker *w) {
    const struct attn_shape *s = layer->shape;
    const struct mosa_params *params = layer->params;
    struct mosa *state = layer->state;
    struct attn_batch dense = *b;
    dense.q = state->dense_q;
    dense.out = state->dense_out;
    if (w->id == 0 && !b->prefill)
        for (int i = 1; i <= b->n; i++)
            state->dense_attended += (double)(state->dense.cache.heads[0].n + i) * params->dense_heads;
    dense_attend(&state->dense, &dense, w);
    int begin, end;
    worker_range(w, b->n, 1, &begin, &end);
    size_t d = (size_t)s->head_dim;
    for (int i = begin; i < end; i++)
        memcpy(b->out + (size_t)i * (size_t)s->n_head * d,
               state->dense_out + (size_t)i * (size_t)state->dense_shape.n_head * d,
               (size_t)params->dense_heads * d * sizeof(float));
}

/* ---- the mode ---- */

/* Scores every token, rotates q and k in place and multiplies q by the softmax scale. */
static void prepare_tokens(struct attn_layer *layer, const struct attn_batch *b, struct worker *w) {
    const struct attn_shape *s = layer->shape;
    const struct mosa *state = layer->state;
    int d = s->head_dim, begin, end;
    worker_range(w, b->n, 1, &begin, &end);
    for (int i = begin; i < end; i++) {
        const float *table = b->rope + (size_t)i * 2 * (size_t)s->rope->n_pairs;
        float *q = b->q + (size_t)i * (size_t)(s->n_head * d);
        float *k = b->k + (size_t)i * (size_t)(s->n_head_kv * d);
        route(layer, b, i);
        for (int h = 0; h < s->n_head; h++) rope_rotate(s->rope, table, q + h * d);
        for (int c = 0; c < s->n_head * d; c++) q[c] *= s->scale;
        for (int g = 0; g < s->n_head_kv; g++) rope_rotate(s->rope, table, k + g * d);
        if (state->dense_shape.n_head) store_dense(layer, b, i);
    }
    team_barrier(w);
}

static void mosa_forward(struct attn_layer *layer, const struct attn_batch *b, struct worker *w) {
    const struct mosa_params *params = layer->params;
    struct mosa *state = layer->state;
    prepare_tokens(layer, b, w);
    if (state->dense_shape.n_head) attend_dense(layer, b, w);
    if (params->select == SELECT_PREFIX) {
        for (int index; (index = team_next(w)) < state->n_sets;) forward_prefix(layer, b, index);
    } else {
        for (int index; (index = team_next(w)) < state->n_sets;) choose_members(layer, b, index);
        team_barrier(w);
        int most = b->n < params->k ? b->n : params->k;
        for (int item; (item = team_next(w)) < state->n_sets * most;) {
            int index = item % state->n_sets, j = item / state->n_sets;
            attend_members(layer, b, index, state->members.heads[index].pos[j] - b->pos, j + 1);
        }
    }
    team_barrier(w);
}

/* As many scores as there is room for members. */
static int reserve_ranks(struct mosa *state, struct error *err) {
    for (int i = 0; i < state->n_sets; i++) {
        struct set *set = &state->sets[i];
        int cap = state->members.heads[i].cap;
        if (cap == set->cap) continue;
        float *rank = realloc(set->rank, (size_t)cap * sizeof *rank);
        if (!rank) return fail(err, "out of memory for the %d members of a head", cap);
        set->rank = rank;
        set->cap = cap;
    }
    return 0;
}

static int mosa_reserve(struct attn_layer *layer, const struct attn_batch *b, struct error *err) {
    const struct mosa_params *params = layer->params;
    struct mosa *state = layer->state;
    if (params->select == SELECT_SEQUENCE && (b->pos > 0 || !b->prompt_end))
        return fail_usage(err, "--attn mosa:select=sequence chooses among the tokens of a whole text: they "
                          "must be one batch (-b at least the prompt's length), and nothing can be generated");
    if (state->dense_shape.n_head && kv_reserve(&state->dense.cache, b->n, err)) return -1;
    int left = params->k - state->members.heads[0].n;
    if (state->n_sets && kv_reserve(&state->members, b->n < left ? b->n : left, err)) return -1;
    return reserve_ranks(state, err);
}

static int load_router(struct attn_layer *layer, const struct model *model, struct error *err) {
    const struct attn_shape *s = layer->shape;
    const struct mosa_params *params = layer->params;
    struct mosa *state = layer->state;
    state->n_router = s->n_head_kv;
    if (params->router == ROUTER_KNORM) {
        layer->warning = "mosa: the router is the norm of the keys, not a trained one";
        return 0;
    }
    struct weight w;
    char name[64];
    snprintf(name, sizeof name, "blk.%d.attn_mosa_router.weight", layer->index);
    const struct gguf_tensor *t = model->adapter ? gguf_find_tensor(model->adapter, name) : NULL;
    if (!t) t = gguf_find_tensor(model->file, name);
    if (!t)
        return fail(err, "%s: mosa attention needs tensor '%s', which is missing: give a checkpoint or "
                    "--adapter that has it, or use --attn mosa:router=knorm, which needs no training",
                    gguf_path(model->file), name);
    if (t->ne[1] == s->n_head) state->n_router = s->n_head;
    if (model_weight(model, name, state->n_router, s->n_embd, true, &w, err)) return -1;
    state->router = alloc_zeroed((size_t)state->n_router * (size_t)s->n_embd * sizeof(float));
    if (!state->router) return fail(err, "out of memory for the router of layer %d", layer->index);
    for (int i = 0; i < state->n_router; i++)
        weight_row(s->kernels, &w, i, state->router + (size_t)i * (size_t)s->n_embd);
    return 0;
}

/* One set per routed query head, or per KV head that has routed query heads. */
static int make_sets(struct attn_layer *layer, struct error *err) {
    const struct attn_shape *s = layer->shape;
    const struct mosa_params *params = layer->params;
    struct mosa *state = layer->state;
    int group = s->n_head / s->n_head_kv, width = s->n_head / state->n_router; /* query heads per score */
    state->sets = calloc((size_t)state->n_router, sizeof *state->sets);
    if (!state->sets) return fail(err, "out of memory for the state of layer %d", layer->index);
    for (int row = params->dense_heads / width; row < state->n_router; row++) {
        int head = row * width < params->dense_heads ? params->dense_heads : row * width;
        state->sets[state->n_sets++] = (struct set){
            .kv_head = head / group, .router = row, .head = head, .n_heads = (row + 1) * width - head,
        };
    }
    int n = state->n_sets > 0 ? state->n_sets : 1;
    return kv_init(&state->members, n, s->head_dim, s->type_k, s->type_v, err);
}

static int make_dense(struct attn_layer *layer, struct error *err) {
    const struct attn_shape *s = layer->shape;
    const struct mosa_params *params = layer->params;
    struct mosa *state = layer->state;
    int group = s->n_head / s->n_head_kv, n_head_kv = (params->dense_heads + group - 1) / group;
    size_t bytes = (size_t)s->max_batch * (size_t)(n_head_kv * group * s->head_dim) * sizeof(float);
    state->dense_shape = *s;
    state->dense_shape.n_head = n_head_kv * group;
    state->dense_shape.n_head_kv = n_head_kv;
    state->dense = (struct attn_layer){
        .index = layer->index, .shape = &state->dense_shape, .scratch = layer->scratch,
    };
    state->dense_q = alloc_zeroed(bytes);
    state->dense_out = alloc_zeroed(bytes);
    if (!state->dense_q || !state->dense_out)
        return fail(err, "out of memory for a batch of %d tokens: try a smaller -b", s->max_batch);
    return kv_init(&state->dense.cache, n_head_kv, s->head_dim, s->type_k, s->type_v, err);
}

static int mosa_init(struct attn_layer *layer, const struct model *model, struct error *err) {
    const struct attn_shape *s = layer->shape;
    const struct mosa_params *params = layer->params;
    struct mosa *state = calloc(1, sizeof *state);
    layer->state = state;
    if (!state) return fail(err, "out of memory for the state of layer %d", layer->index);
    if (params->dense_heads > s->n_head)
        return fail_usage(err, "--attn mosa: dense_heads is %d, but the model has %d query heads",
                          params->dense_heads, s->n_head);
    layer->whole_prompt = params->select == SELECT_SEQUENCE;
    if (load_router(layer, model, err) || make_sets(layer, err)) return -1;
    if (params->dense_heads && make_dense(layer, err)) return -1;
    state->scores = alloc_zeroed((size_t)s->max_batch * (size_t)state->n_router * sizeof(float));
    if (state->scores) return 0;
    return fail(err, "out of memory for a batch of %d tokens: try a smaller -b", s->max_batch);
}

static void mosa_stats(const struct attn_layer *layer, struct attn_stats *stats) {
    const struct mosa *state = layer->state;
    double entries = 0;
    *stats = (struct attn_stats){
        .bytes = kv_bytes(&state->members) + kv_bytes(&state->dense.cache),
        .entries_attended = state->dense_attended,
    };
    for (int g = 0; g < state->dense_shape.n_head_kv && state->dense.cache.heads; g++)
        entries += state->dense.cache.heads[g].n;
    for (int i = 0; i < state->n_sets; i++) {
        entries += state->members.heads[i].n;
        stats->bytes += (size_t)state->sets[i].cap * sizeof(float);
        stats->entries_attended += state->sets[i].attended;
    }
    stats->entries_cached = entries / layer->shape->n_head_kv;
}

static void mosa_reset(struct attn_layer *layer) {
    struct mosa *state = layer->state;
    for (int i = 0; i < state->n_sets; i++) state->members.heads[i].n = 0;
    if (state->dense.cache.heads) kv_truncate(&state->dense.cache, 0);
}

static int mosa_state(struct attn_layer *layer, struct state_io *io, struct error *err) {
    const struct mosa_params *params = layer->params;
    struct mosa *state = layer->state;
    if (kv_state(&state->members, io, err) || reserve_ranks(state, err)) return -1;
    if (state->dense.cache.heads && kv_state(&state->dense.cache, io, err)) return -1;
    for (int i = 0; i < state->n_sets; i++) {
        struct set *set = &state->sets[i];
        const struct kv_head *members = &state->members.heads[i];
        if (members->n != state->members.heads[0].n || members->n > params->k) io->failed = true;
        state_bytes(io, set->rank, (size_t)members->n * sizeof *set->rank);
        if (members->n == params->k) set->worst = find_worst(set, members->pos, members->n);
    }
    return 0;
}

static void mosa_free(struct attn_layer *layer) {
    struct mosa *state = layer->state;
    if (!state) return;
    for (int i = 0; i < state->n_sets; i++) free(state->sets[i].rank);
    kv_free(&state->members);
    kv_free(&state->dense.cache);
    void *buffers[] = {state->sets, state->router, state->scores, state->dense_q, state->dense_out, state};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) free(buffers[i]);
    layer->state = NULL;
}

const struct attn_mode attn_mosa = {
    .name = "mosa",
    .summary = "every head keeps and attends to the k tokens that its router scores highest",
    .params = mosa_table,
    .params_bytes = sizeof(struct mosa_params),
    .init = mosa_init,
    .reserve = mosa_reserve,
    .forward = mosa_forward,
    .stats = mosa_stats,
    .free = mosa_free,
    .reset = mosa_reset,
    .state = mosa_state,
};
