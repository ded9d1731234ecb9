#include "model.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "attention/spec.h"
#include "kernels/attend.h"
#include "landmarks.h"

/* ---- The forward pass. Every worker of the team runs these functions from top to bottom. ----
 *
 * What belongs to one row of a batch (a norm, an activation function) is split between the workers by
 * rows. With a single row each worker does it for itself into its own memory, which takes less time than
 * waiting for the others. */

static const float *vector(const struct weight *w) { return (const float *)(const void *)w->data; }

/* RMSNorm of n rows of the residual stream, ready for this worker's products; `precise` as in struct acts. */
static struct acts norm_rows(struct worker *w, struct session *s, const float *x, int n, const struct weight *norm,
                             bool precise) {
    const struct model *m = s->model;
    int n_embd = m->config.n_embd;
    float *out = s->x_norm + (n == 1 ? (size_t)w->id * n_embd : 0);
    struct acts acts = {.n = n, .cols = n_embd, .f32 = out, .q8 = s->q8, .precise = precise};
    if (n == 1) {
        rmsnorm(m->kernels, out, x, vector(norm), n_embd, m->config.norm_eps);
        return acts;
    }
    int begin, end;
    worker_range(w, n, 1, &begin, &end);
    for (int i = begin; i < end; i++) {
        size_t row = (size_t)i * n_embd;
        rmsnorm(m->kernels, out + row, x + row, vector(norm), n_embd, m->config.norm_eps);
        acts_prepare_row(m->kernels, &acts, i);
    }
    team_barrier(w);
    return acts;
}

/* The batch's rows of x, of `cols` columns, ready for products. */
static struct acts prepare(struct worker *w, struct session *s, const float *x, int cols) {
    const struct acts acts = {.n = s->n, .cols = cols, .f32 = x, .q8 = s->q8, .precise = s->options.precise};
    acts_prepare(w, s->model->kernels, &acts);
    return acts;
}

/* y += scale * B (A x) */
static void add_low_rank(struct worker *w, struct session *s, const struct product *product,
                         const struct acts *acts) {
    const struct lora *lora = product->w->lora;
    int rank = lora->a.rows, begin, end;
    const struct product down = {.w = &lora->a, .y = s->low_rank, .y_stride = (size_t)rank};
    matmul(w, s->model->kernels, &down, 1, acts, s->scratch);
    team_barrier(w);
    worker_range(w, acts->n * rank, 1, &begin, &end);
    for (int i = begin; i < end; i++) s->low_rank[i] *= lora->scale;
    team_barrier(w);
    const struct acts low = {.n = acts->n, .cols = rank, .f32 = s->low_rank};
    const struct product up = {.w = &lora->b, .y = product->y, .y_stride = product->y_stride, .add = true};
    matmul(w, s->model->kernels, &up, 1, &low, s->scratch);
    team_barrier(w);
}

static void multiply(struct worker *w, struct session *s, const struct product *products, int n_products,
                     const struct acts *acts) {
    matmul(w, s->model->kernels, products, n_products, acts, s->scratch);
    team_barrier(w);
}

#define MAX_PRODUCTS 3

/* Announces the weights of the products after the next ones, which a single token would have to wait for. */
static void expect(struct worker *w, const struct session *s, const struct weight *const *weights, int n) {
    matmul_expect(w, weights, s->n == 1 ? n : 0);
}

/* Adds the products of what 8 bits leave out of the activations: together they are as good as with 16. */
static void add_residual(struct worker *w, struct session *s, const struct product *products, int n_products,
                         const struct acts *acts) {
    struct product rest[MAX_PRODUCTS];
    int n_rest = 0;
    for (int i = 0; i < n_products; i++) {
        if (products[i].coarse || !is_quantised(products[i].w->type)) continue;
        rest[n_rest] = products[i];
        rest[n_rest++].add = true;
    }
    size_t cols = (size_t)acts->cols;
    int begin = 0, end = 1;
    float *own = s->residual + (acts->n == 1 ? (size_t)w->id * cols : 0);
    if (acts->n > 1) worker_range(w, acts->n, 1, &begin, &end);
    void *row_q8 = (char *)s->row_q8 + (size_t)w->id * acts_bytes(s->model->kernels, 1, acts->cols);
    const struct acts rest_acts = {.n = acts->n, .cols = acts->cols, .f32 = own, .q8 = s->q8};
    for (int i = begin; i < end; i++) {
        acts_residual(s->model->kernels, acts, i, row_q8, own + (size_t)i * cols);
        if (acts->n > 1) acts_prepare_row(s->model->kernels, &rest_acts, i);
    }
    if (acts->n > 1) team_barrier(w);
    multiply(w, s, rest, n_rest, &rest_acts);
}

/* Whether the products of these activations take a second pass, with what 8 bits leave out. */
static bool have_residual(const struct session *s, const struct acts *acts) {
    return acts->precise && !s->model->exact && acts->cols % 32 == 0 &&
           !acts_heed_precise(s->model->kernels, acts->n);
}

/* Products with the same input, which is ready for them. Where it is precise, quantised weights are multiplied with
 * activations of 16 bits instead of 8. */
static void project(struct worker *w, struct session *s, const struct product *products, int n_products,
                    const struct acts *acts) {
    multiply(w, s, products, n_products, acts);
    if (have_residual(s, acts)) add_residual(w, s, products, n_products, acts);
    for (int i = 0; i < n_products; i++)
        if (products[i].w->lora) add_low_rank(w, s, &products[i], acts);
}

/* Where rounding costs the most accuracy for the least time: k and v, which all later tokens attend to, and the
 * output head. (q takes more time than both and matters a fifth as much.) A generated token has the weights to wait
 * for and stays with 8 bits. */
static bool sensitive(const struct session *s) { return s->options.precise || s->phase != PHASE_GENERATE; }

/* Bias and norm of the heads of one token's q, k or v. */
static void finish_heads(const struct model *m, float *heads, int n_heads, const struct weight *bias,
                         const struct weight *norm) {
    int d = m->config.head_dim;
    if (bias->data) vec_add(m->kernels, heads, vector(bias), n_heads * d);
    if (norm->data)
        for (int h = 0; h < n_heads; h++)
            rmsnorm(m->kernels, heads + h * d, heads + h * d, vector(norm), d, m->config.norm_eps);
}

static void finish_qkv(struct worker *w, struct session *s, const struct layer *layer) {
    const struct config *c = &s->model->config;
    static const struct weight no_norm;
    int begin, end;
    worker_range(w, s->n, 1, &begin, &end);
    for (int i = begin; i < end; i++) {
        finish_heads(s->model, s->q + (size_t)i * c->n_head * c->head_dim, c->n_head, &layer->bq, &layer->q_norm);
        finish_heads(s->model, s->k + (size_t)i * c->n_head_kv * c->head_dim, c->n_head_kv, &layer->bk,
                     &layer->k_norm);
        finish_heads(s->model, s->v + (size_t)i * c->n_head_kv * c->head_dim, c->n_head_kv, &layer->bv, &no_norm);
    }
    team_barrier(w);
}

/* The batch in progress as the attention layers see it. */
static struct attn_batch attention_batch(const struct session *s, const float *x_norm) {
    return (struct attn_batch){
        .n = s->n, .pos = s->n_past, .prefill = s->phase != PHASE_GENERATE,
        .prompt_end = s->phase == PHASE_PROMPT_END, .x = x_norm,
        .q = s->q, .k = s->k, .v = s->v, .rope = s->rope, .out = s->attn_out,
    };
}

/* --kv-evict, once a layer's attention has seen the batch: queries are rotated and scaled by then. */
static void evict_block(struct worker *w, struct session *s, int l) {
    const struct evict_batch batch = {
        .n = s->n, .pos = s->n_past, .rope_pos = s->rope_pos, .prefill = s->phase != PHASE_GENERATE,
        .prompt_end = s->phase == PHASE_PROMPT_END, .q = s->q, .rope = s->rope,
    };
    evict_step(s->evict, l, &batch, w);
}

/* x += Wo attention(norm(x)) */
static void attention_block(struct worker *w, struct session *s, int l) {
    const struct config *c = &s->model->config;
    const struct layer *layer = &s->model->layers[l];
    size_t q_size = (size_t)c->n_head * c->head_dim, kv_size = (size_t)c->n_head_kv * c->head_dim;

    const struct acts x_norm = norm_rows(w, s, s->x, s->n, &layer->attn_norm, sensitive(s));
    const struct product qkv[] = {
        {.w = &layer->wq, .y = s->q, .y_stride = q_size, .coarse = !s->options.precise},
        {.w = &layer->wk, .y = s->k, .y_stride = kv_size},
        {.w = &layer->wv, .y = s->v, .y_stride = kv_size},
    };
    expect(w, s, NULL, 0);
    project(w, s, qkv, 3, &x_norm);
    if (layer->bq.data || layer->bk.data || layer->bv.data || layer->q_norm.data || layer->k_norm.data)
        finish_qkv(w, s, layer);

    struct attn_batch batch = attention_batch(s, x_norm.f32);
    expect(w, s, (const struct weight *const[]){&layer->wo}, 1);
    s->layers[l].mode->forward(&s->layers[l], &batch, w);
    if (s->evict) evict_block(w, s, l);

    const struct product out = {.w = &layer->wo, .y = s->x, .y_stride = c->n_embd, .add = true};
    const struct acts attended = prepare(w, s, s->attn_out, (int)q_size);
    expect(w, s, (const struct weight *const[]){&layer->w_gate}, 1);
    project(w, s, &out, 1, &attended);
}

/* hidden = silu(W_gate x_norm) * W_up x_norm, at once unless something is added to the products before they meet. */
static void swiglu(struct worker *w, struct session *s, const struct layer *layer, const struct acts *x_norm) {
    const struct model *m = s->model;
    const struct weight *gate = &layer->w_gate, *up = &layer->w_up;
    int n_ff = m->config.n_ff, begin, end;
    if (gate->type == up->type && !gate->lora && !up->lora && !have_residual(s, x_norm)) {
        const struct product gated = {.w = up, .gate = gate, .y = s->hidden, .y_stride = n_ff};
        multiply(w, s, &gated, 1, x_norm);
        return;
    }
    const struct product apart[] = {
        {.w = gate, .y = s->hidden, .y_stride = n_ff},
        {.w = up, .y = s->up, .y_stride = n_ff},
    };
    project(w, s, apart, 2, x_norm);
    worker_range(w, n_ff, 16, &begin, &end);
    for (int i = 0; i < s->n; i++) {
        size_t first = (size_t)i * n_ff + begin;
        silu_mul(m->kernels, s->hidden + first, s->hidden + first, s->up + first, end - begin);
    }
    team_barrier(w);
}

/* x += W_down (silu(W_gate norm(x)) * W_up norm(x)) */
static void feed_forward_block(struct worker *w, struct session *s, int l) {
    const struct config *c = &s->model->config;
    const struct layer *layer = &s->model->layers[l];

    const struct acts x_norm = norm_rows(w, s, s->x, s->n, &layer->ffn_norm, s->options.precise);
    expect(w, s, (const struct weight *const[]){&layer->w_down}, 1);
    swiglu(w, s, layer, &x_norm);

    const struct product down = {.w = &layer->w_down, .y = s->x, .y_stride = c->n_embd, .add = true};
    const struct acts hidden = prepare(w, s, s->hidden, c->n_ff);
    if (l + 1 < c->n_layer) expect(w, s, (const struct weight *const[]){&layer[1].wq, &layer[1].wk, &layer[1].wv}, 3);
    else expect(w, s, (const struct weight *const[]){&s->model->output}, 1);
    project(w, s, &down, 1, &hidden);
}

static void embed(struct worker *w, struct session *s) {
    const struct config *c = &s->model->config;
    int begin, end;
    worker_range(w, s->n, 1, &begin, &end);
    for (int i = begin; i < end; i++) {
        float *x = s->x + (size_t)i * c->n_embd;
        if (s->tokens[i] < c->n_vocab) weight_row(s->model->kernels, &s->model->token_embd, s->tokens[i], x);
        else weight_row(s->model->kernels, &s->landmark_embd, 0, x);
        rope_table(&c->rope, s->rope_pos + i, s->rope + (size_t)i * 2 * c->rope.n_pairs);
    }
    team_barrier(w);
}

static void forward(struct worker *w, void *arg) {
    struct session *s = arg;
    embed(w, s);
    for (int l = 0; l < s->model->config.n_layer; l++) {
        attention_block(w, s, l);
        feed_forward_block(w, s, l);
    }
}

bool session_fits(const struct session *s, int n) {
    return landmarks_needed(s, n) <= s->options.n_ctx - s->n_past;
}

int session_reserve_history(struct session *s, int n, struct error *err) {
    if (n <= s->history_cap - s->n_history) return 0;
    int cap = s->n_history + n + s->history_cap / 2;
    int *history = realloc(s->history, (size_t)cap * sizeof *history);
    if (!history) return fail(err, "out of memory for %d tokens", cap);
    s->history = history;
    s->history_cap = cap;
    return 0;
}

void session_expect(struct session *s, int64_t n) {
    int64_t expected = s->n_past + n;
    if (expected > s->options.n_ctx) expected = s->options.n_ctx;
    for (int l = 0; l < s->model->config.n_layer && !s->evict; l++)
        if (s->layers[l].mode->evictable) s->layers[l].cache.expected = (int)expected;
}

int session_forward(struct session *s, const int *tokens, int n, enum phase phase, struct error *err) {
    const struct config *c = &s->model->config;
    if (!session_fits(s, n))
        return fail(err, "the context is full: %d tokens and %d more, but -c is %d", s->n_past, n,
                    s->options.n_ctx);
    for (int i = 0; i < n; i++)
        if (tokens[i] < 0 || tokens[i] >= c->n_vocab)
            return fail(err, "token %d is not in the vocabulary (0 to %d)", tokens[i], c->n_vocab - 1);

    if (session_reserve_history(s, n, err)) return -1;
    landmarks_insert(s, tokens, n);
    s->phase = phase;
    struct attn_batch batch = attention_batch(s, s->x_norm);
    for (int l = 0; l < c->n_layer; l++) {
        struct attn_layer *layer = &s->layers[l];
        if (layer->mode->reserve && layer->mode->reserve(layer, &batch, err)) return -1;
    }
    if (s->evict && evict_reserve(s->evict, s->n, err)) return -1;
    s->rope_pos = s->evict ? evict_rope_pos(s->evict, 0, s->n_past) : s->n_past;
    team_run(s->team, forward, s);
    s->n_past += s->n;
    landmarks_drop(s, n);
    memcpy(s->history + s->n_history, tokens, (size_t)n * sizeof *tokens);
    s->n_history += n;
    if (phase == PHASE_GENERATE) s->n_generated += n;
    return 0;
}

struct logits_job {
    struct session *s;
    int row, n;
    float *logits;
};

static void output_head(struct worker *w, void *arg) {
    const struct logits_job *job = arg;
    struct session *s = job->s;
    const struct config *c = &s->model->config;
    const float *x = s->x + (size_t)job->row * c->n_embd;
    const struct acts x_norm = norm_rows(w, s, x, job->n, &s->model->output_norm, sensitive(s));
    const struct product out = {.w = &s->model->output, .y = job->logits, .y_stride = c->n_vocab};
    expect(w, s, NULL, 0);
    project(w, s, &out, 1, &x_norm);
}

void session_logits(struct session *s, int row, int n_rows, float *logits) {
    struct logits_job job = {.s = s, .row = row, .n = n_rows, .logits = logits};
    team_run(s->team, output_head, &job);
}

/* ---- Sessions ---- */

#define ALIGNMENT 64 /* a cache line, a vector register */

static uintptr_t align(uintptr_t n) { return (n + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

static size_t most_scratch(const struct session *s) {
    size_t most = attn_scratch_bytes(&s->shape);
    for (int l = 0; l < s->model->config.n_layer; l++) {
        const struct attn_layer *layer = &s->layers[l];
        size_t bytes = layer->mode->scratch_bytes ? layer->mode->scratch_bytes(layer) : 0;
        if (bytes > most) most = bytes;
    }
    return most;
}

static int allocate_buffers(struct session *s, struct error *err) {
    const struct config *c = &s->model->config;
    size_t n = s->shape.max_batch, n_threads = s->options.n_threads;
    size_t rows = n > n_threads + 1 ? n : n_threads + 1; /* a single token's rows are private to each worker */
    size_t q_size = (size_t)c->n_head * c->head_dim, kv_size = (size_t)c->n_head_kv * c->head_dim;
    int widest = c->n_ff > c->n_embd ? c->n_ff : c->n_embd;
    if ((int)q_size > widest) widest = (int)q_size;

    const struct { void *field; size_t bytes; } buffers[] = {
        {&s->x, n * c->n_embd * sizeof(float)},
        {&s->x_norm, rows * c->n_embd * sizeof(float)},
        {&s->q, n * q_size * sizeof(float)},
        {&s->k, n * kv_size * sizeof(float)},
        {&s->v, n * kv_size * sizeof(float)},
        {&s->attn_out, n * q_size * sizeof(float)},
        {&s->hidden, n * c->n_ff * sizeof(float)},
        {&s->up, n * c->n_ff * sizeof(float)},
        {&s->low_rank, n * s->model->max_rank * sizeof(float)},
        {&s->expanded, n * sizeof(int)},
        {&s->rope, n * 2 * c->rope.n_pairs * sizeof(float)},
        {&s->q8, acts_bytes(s->model->kernels, (int)rows, widest)},
        {&s->residual, rows * widest * sizeof(float)},
        {&s->row_q8, n_threads * acts_bytes(s->model->kernels, 1, widest)},
        {&s->scratch, n_threads * matmul_scratch_bytes((int)n, widest)},
        {&s->attn_scratch, most_scratch(s)},
    };
    /* One zeroed block: pages that a short prompt doesn't reach are never touched. */
    size_t total = ALIGNMENT;
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) total += align(buffers[i].bytes);
    s->buffers = calloc(1, total);
    if (!s->buffers) return fail(err, "out of memory for a batch of %zu tokens: try a smaller -b", n);
    char *p = (char *)align((uintptr_t)s->buffers);
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) {
        memcpy(buffers[i].field, &p, sizeof p);
        p += align(buffers[i].bytes);
    }
    return 0;
}

/* Every layer's mode, and the positions that a batch takes with it. */
static int choose_modes(struct session *s, struct error *err) {
    const struct config *c = &s->model->config;
    s->layers = calloc(c->n_layer, sizeof *s->layers);
    if (!s->layers) return fail(err, "out of memory for %d layers", c->n_layer);
    for (int l = 0; l < c->n_layer; l++) s->layers[l] = (struct attn_layer){.index = l, .shape = &s->shape};
    if (attn_spec_apply(s->options.attn, s->layers, s->model, err) || landmarks_init(s, err)) return -1;
    s->shape.max_batch = landmarks_room(s, s->options.n_batch);
    return 0;
}

static void tell_mode(void *owner, int head, const int *keep, int n) {
    struct attn_layer *layer = owner;
    layer->mode->dropped(layer, head, keep, n);
}

static struct evict_shape eviction_shape(const struct session *s) {
    const struct config *c = &s->model->config;
    return (struct evict_shape){
        .n_layer = c->n_layer, .n_head = c->n_head, .n_head_kv = c->n_head_kv, .head_dim = c->head_dim,
        .n_ctx = s->options.n_ctx, .n_threads = s->options.n_threads,
        .rope = &c->rope, .attend = s->shape.attend, .select = sparse_select(kernels_isa(s->model->kernels)),
    };
}

static int create_eviction(struct session *s, struct error *err) {
    const struct config *c = &s->model->config;
    const struct evict_shape shape = eviction_shape(s);
    if (evict_create(&s->evict, s->options.kv_evict, &shape, err)) return -1;
    for (int l = 0; s->evict && l < c->n_layer; l++) {
        struct attn_layer *layer = &s->layers[l];
        const char *mode = layer->mode->name;
        if (!layer->mode->evictable)
            return fail_usage(err, "--kv-evict: layer %d has --attn %s, which decides by itself what it keeps: "
                              "use dense, moba or topk there", l, mode);
        if (layer->mode->dropped && s->evict->options->rerotate)
            return fail_usage(err, "--kv-evict: rerotate=1 changes keys of which --attn %s (layer %d) keeps "
                              "summaries: use rerotate=0 or dense attention", mode, l);
        evict_attach(s->evict, l, &layer->cache, layer->mode->dropped ? tell_mode : NULL, layer);
    }
    return 0;
}

static int create_layers(struct session *s, struct error *err) {
    const struct config *c = &s->model->config;
    if (create_eviction(s, err)) return -1;
    for (int l = 0; l < c->n_layer; l++) {
        struct attn_layer *layer = &s->layers[l];
        layer->scratch = s->attn_scratch;
        if (kv_init(&layer->cache, c->n_head_kv, c->head_dim, s->options.type_k, s->options.type_v, err)) return -1;
        if (layer->mode->init && layer->mode->init(layer, s->model, err)) return -1;
    }
    return 0;
}

struct session *session_create(const struct model *model, const struct session_options *options,
                               struct error *err) {
    const struct config *c = &model->config;
    struct session *s = calloc(1, sizeof *s);
    if (!s) {
        fail(err, "out of memory for a session");
        return NULL;
    }
    s->model = model;
    s->options = *options;
    bool exact = model->exact || options->precise;
    s->shape = (struct attn_shape){
        .n_embd = c->n_embd, .n_head = c->n_head, .n_head_kv = c->n_head_kv, .head_dim = c->head_dim,
        .scale = 1 / sqrtf((float)c->head_dim), .exact = exact, .measure = options->measure,
        .type_k = options->type_k, .type_v = options->type_v,
        .n_ctx = options->n_ctx, .n_threads = options->n_threads,
        .rope = &c->rope, .kernels = model->kernels,
        .attend = attend_select(kernels_isa(model->kernels), exact),
    };
    s->team = team_create(options->n_threads, err);
    if (!s->team || choose_modes(s, err) || allocate_buffers(s, err) || create_layers(s, err)) {
        session_free(s);
        return NULL;
    }
    return s;
}

void session_free(struct session *s) {
    if (!s) return;
    if (s->layers) {
        for (int l = 0; l < s->model->config.n_layer; l++) {
            struct attn_layer *layer = &s->layers[l];
            if (layer->mode && layer->mode->free) layer->mode->free(layer);
            kv_free(&layer->cache);
            free(layer->params);
        }
        free(s->layers);
    }
    evict_free(s->evict);
    team_free(s->team);
    free(s->history);
    free(s->buffers);
    free(s);
}

void session_reset(struct session *s) {
    for (int l = 0; l < s->model->config.n_layer; l++) {
        struct attn_layer *layer = &s->layers[l];
        kv_truncate(&layer->cache, 0);
        if (layer->mode->reset) layer->mode->reset(layer);
    }
    if (s->evict) evict_reset(s->evict);
    s->n_past = s->n_history = s->n = 0;
}

bool session_whole_prompt(const struct session *s) {
    for (int l = 0; l < s->model->config.n_layer; l++)
        if (s->layers[l].whole_prompt) return true;
    return false;
}

void session_stats(const struct session *s, struct session_stats *stats) {
    const struct config *c = &s->model->config;
    *stats = (struct session_stats){0};
    for (int l = 0; l < c->n_layer; l++) {
        struct attn_stats layer = {0};
        s->layers[l].mode->stats(&s->layers[l], &layer);
        stats->cache_bytes += layer.bytes;
        stats->entries_cached += layer.entries_cached / c->n_layer;
        stats->entries_attended += layer.entries_attended / c->n_layer / c->n_head;
    }
    if (s->evict) stats->cache_bytes += evict_bytes(s->evict);
    if (s->n_generated) stats->entries_attended /= s->n_generated;
}

void session_layer_stats(const struct session *s, int layer, struct attn_stats *stats) {
    *stats = (struct attn_stats){0};
    s->layers[layer].mode->stats(&s->layers[layer], stats);
}

int session_watch(struct session *s, struct error *err) {
    const struct evict_shape shape = eviction_shape(s);
    int n_layer = s->model->config.n_layer;
    for (int l = 0; l < n_layer; l++)
        if (!s->layers[l].mode->evictable) return 0;
    if (evict_watch_create(&s->evict, &shape, err)) return -1;
    for (int l = 0; l < n_layer; l++) evict_attach(s->evict, l, &s->layers[l].cache, NULL, NULL);
    return 0;
}

void session_watch_hold(struct session *s, const struct session *other) {
    for (int l = 0; s->evict && l < s->model->config.n_layer; l++)
        evict_watch_hold(s->evict, l, &other->layers[l].cache);
}

double session_watch_mass(const struct session *s, int layer) {
    double rows = 0, mass = 0;
    for (int l = 0; s->evict && l < s->model->config.n_layer; l++) {
        double layer_rows, layer_mass;
        if (layer >= 0 && l != layer) continue;
        evict_watch_mass(s->evict, l, &layer_rows, &layer_mass);
        rows += layer_rows;
        mass += layer_mass;
    }
    return rows > 0 ? mass / rows : (double)NAN;
}
