/* infini.c - Infini-attention (Munkhdalai et al. 2024, arXiv 2404.07143).
 *
 * Text is cut into segments. A token attends densely within its segment; what came before is one matrix M
 * and one vector z per KV head, read with s(q) = ELU(q) + 1:
 *
 *     A_mem = s(q) M / (s(q).z + 1e-6),   out = sigmoid(beta) A_mem + (1 - sigmoid(beta)) A_dot
 *
 * The segment in progress adds itself up in a second, pending memory, token by token: M += s(k)^T v, z +=
 * s(k), where the delta rule takes from v what the complete memory already gives for k. At the segment's
 * end the pending memory joins the complete one and the segment's keys and values are forgotten. So memory
 * and time per token are the same at any position.
 *
 * A memory lies as d + 1 rows of d floats, row c < d being column c of M and row d being z: then s(q)M and
 * s(q).z are the scores of s(q) against these rows, and adding a token is adding v_c s(k) to row c, with
 * v_d = 1. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../alloc.h"
#include "../model.h"
#include "dense.h"

#define EPSILON 1e-6f
#define TILE 16           /* tokens that a worker takes at a time */
#define ROWS 16           /* rows of a memory, likewise */

struct infini_params {
    int segment, delta;
    float gate;           /* < 0: from the file */
};

struct infini {
    const struct attend_kernels *attend; /* float32: sums over a whole text are no place for 8 bits */
    float *gates;         /* [H] sigmoid(beta) */
    float *memory;        /* [G, d + 1, d] of the complete segments */
    float *pending;       /* [G, d + 1, d] of the segment in progress */
    size_t memory_bytes;
    double attended;      /* cached entries, summed over generated tokens and query heads */
};

static const struct param infini_table[] = {
    {"segment", PARAM_INT, offsetof(struct infini_params, segment), 2048, 1, 1 << 20, NULL,
     "attention.infini.segment_length", "tokens per segment"},
    {"delta", PARAM_BOOL, offsetof(struct infini_params, delta), 0, 0, 1, NULL, "attention.infini.delta_rule",
     "store what the memory doesn't give yet"},
    {"gate", PARAM_FLOAT, offsetof(struct infini_params, gate), -1, 0, 1, "file", NULL,
     "share of the memory in every output, or file: the trained gates"},
    {0},
};

/* ---- parts of the forward pass ---- */

static float feature(float x) { return x > 0 ? x + 1 : expf(x); }

/* out[r * (d + 1) + c] = s_r . row c of the memory of KV head g, for m rows s of `stride` floats. */
static void recall(const struct attn_layer *layer, int g, const float *s, size_t stride, int m, float *out) {
    const struct infini *state = layer->state;
    int d = layer->shape->head_dim;
    size_t row_bytes = (size_t)d * sizeof(float);
    struct kv_view rows = {
        .d = d, .type_k = KV_F32, .k_row_bytes = row_bytes,
        .k = (const uint8_t *)state->memory + (size_t)g * (size_t)(d + 1) * row_bytes,
    };
    state->attend->scores(&rows, 0, d + 1, s, stride, m, out, (size_t)d + 1);
}

/* Stores tokens [begin, end) of a KV head in the cache, and leaves s(k) in b->k, and in b->v what is to be
 * remembered of v. */
static void store_keys(struct attn_layer *layer, const struct attn_batch *b, int g, int begin, int end) {
    const struct attn_shape *s = layer->shape;
    const struct infini_params *params = layer->params;
    int d = s->head_dim, n = layer->cache.heads[g].n;
    size_t stride = (size_t)(s->n_head_kv * d);
    float *k = b->k + (size_t)begin * stride + (size_t)(g * d);
    float *v = b->v + (size_t)begin * stride + (size_t)(g * d);
    for (int i = begin; i < end; i++) {
        float rotated[KV_MAX_DIM], *key = k + (size_t)(i - begin) * stride;
        memcpy(rotated, key, (size_t)d * sizeof *rotated);
        rope_rotate(s->rope, b->rope + (size_t)i * 2 * (size_t)s->rope->n_pairs, rotated);
        kv_write(&layer->cache, g, n + i, b->pos + i, rotated, v + (size_t)(i - begin) * stride);
        for (int c = 0; c < d; c++) key[c] = feature(key[c]);
    }
    if (!params->delta) return;
    float known[TILE * (KV_MAX_DIM + 1)];
    recall(layer, g, k, stride, end - begin, known);
    for (int i = 0; i < end - begin; i++) {
        const float *row = known + i * (d + 1);
        for (int c = 0; c < d; c++) v[(size_t)i * stride + (size_t)c] -= row[c] / (row[d] + EPSILON);
    }
}

static void rotate_queries(const struct attn_layer *layer, const struct attn_batch *b, int g, int begin,
                           int end) {
    const struct attn_shape *s = layer->shape;
    int d = s->head_dim, group = s->n_head / s->n_head_kv;
    for (int i = begin; i < end; i++) {
        float *q = b->q + ((size_t)i * (size_t)s->n_head + (size_t)(g * group)) * (size_t)d;
        for (int h = 0; h < group; h++)
            rope_rotate(s->rope, b->rope + (size_t)i * 2 * (size_t)s->rope->n_pairs, q + h * d);
        for (int c = 0; c < group * d; c++) q[c] *= s->scale;
    }
}

/* Undoes rotate_queries() for one head of token i: out [d] = s(q). */
static void query_feature(const struct attn_shape *s, const float *table, const float *q, float *out) {
    float inverse[2 * ROPE_MAX_PAIRS], m2 = s->rope->magnitude * s->rope->magnitude;
    for (int p = 0; p < s->rope->n_pairs; p++) {
        inverse[2 * p] = table[2 * p] / m2;
        inverse[2 * p + 1] = -table[2 * p + 1] / m2;
    }
    memcpy(out, q, (size_t)s->head_dim * sizeof *out);
    rope_rotate(s->rope, inverse, out);
    for (int c = 0; c < s->head_dim; c++) out[c] = feature(out[c] / s->scale);
}

/* Mixes what the memory gives for tokens [begin, end) into b->out, for the query heads of a KV head. */
static void mix_memory(const struct attn_layer *layer, const struct attn_batch *b, int g, int begin,
                       int end) {
    const struct attn_shape *s = layer->shape;
    const struct infini *state = layer->state;
    int d = s->head_dim, group = s->n_head / s->n_head_kv, n = end - begin;
    for (int h = g * group; h < (g + 1) * group; h++) {
        float features[TILE * KV_MAX_DIM], known[TILE * (KV_MAX_DIM + 1)], gate = state->gates[h];
        for (int i = 0; i < n; i++) {
            const float *table = b->rope + (size_t)(begin + i) * 2 * (size_t)s->rope->n_pairs;
            const float *q = b->q + ((size_t)(begin + i) * (size_t)s->n_head + (size_t)h) * (size_t)d;
            query_feature(s, table, q, features + i * d);
        }
        recall(layer, g, features, (size_t)d, n, known);
        for (int i = 0; i < n; i++) {
            float *out = b->out + ((size_t)(begin + i) * (size_t)s->n_head + (size_t)h) * (size_t)d;
            const float *row = known + i * (d + 1);
            for (int c = 0; c < d; c++) out[c] = gate * (row[c] / (row[d] + EPSILON)) + (1 - gate) * out[c];
        }
    }
}

/* Adds all tokens of b to rows [begin, end) of a head's pending memory, in order. */
static void remember(const struct attn_layer *layer, const struct attn_batch *b, int g, int begin, int end) {
    const struct attn_shape *s = layer->shape;
    const struct infini *state = layer->state;
    int d = s->head_dim;
    size_t stride = (size_t)(s->n_head_kv * d);
    for (int c = begin; c < end; c++) {
        float *restrict row = state->pending + ((size_t)g * (size_t)(d + 1) + (size_t)c) * (size_t)d;
        for (int i = 0; i < b->n; i++) {
            const float *key = b->k + (size_t)i * stride + (size_t)(g * d);
            float v = c < d ? b->v[(size_t)i * stride + (size_t)(g * d + c)] : 1;
            for (int j = 0; j < d; j++) row[j] += v * key[j];
        }
    }
}

static void complete_segment(struct attn_layer *layer, struct worker *w) {
    struct infini *state = layer->state;
    int begin, end;
    worker_range(w, (int)(state->memory_bytes / sizeof(float)), 16, &begin, &end);
    for (int i = begin; i < end; i++) state->memory[i] += state->pending[i];
    memset(state->pending + begin, 0, (size_t)(end - begin) * sizeof(float));
    if (w->id == 0)
        for (int g = 0; g < layer->shape->n_head_kv; g++) layer->cache.heads[g].n = 0;
    team_barrier(w);
}

/* Tokens of one segment. */
static void forward_piece(struct attn_layer *layer, const struct attn_batch *b, struct worker *w) {
    const struct infini_params *params = layer->params;
    bool complete = layer->cache.heads[0].n + b->n == params->segment;
    int G = layer->shape->n_head_kv, d = layer->shape->head_dim;
    int tiles = (b->n + TILE - 1) / TILE, chunks = (d + 1 + ROWS - 1) / ROWS;
    for (int item; (item = team_next(w)) < G * tiles;) {
        int g = item % G, begin = item / G * TILE, end = begin + TILE < b->n ? begin + TILE : b->n;
        store_keys(layer, b, g, begin, end);
        rotate_queries(layer, b, g, begin, end);
    }
    team_barrier(w);
    dense_attend(layer, b, w);
    for (int item; (item = team_next(w)) < G * (tiles + chunks);) {
        int g = item % G, part = item / G;
        if (part < tiles) {
            int end = (part + 1) * TILE;
            mix_memory(layer, b, g, part * TILE, end < b->n ? end : b->n);
        } else {
            int begin = (part - tiles) * ROWS, end = begin + ROWS;
            remember(layer, b, g, begin, end < d + 1 ? end : d + 1);
        }
    }
    team_barrier(w);
    if (complete) complete_segment(layer, w);
}

/* ---- the mode ---- */

static int load_gates(struct attn_layer *layer, const struct model *model, struct error *err) {
    const struct attn_shape *s = layer->shape;
    const struct infini_params *params = layer->params;
    struct infini *state = layer->state;
    if (params->gate >= 0) {
        for (int h = 0; h < s->n_head; h++) state->gates[h] = params->gate;
        layer->warning = "infini: every head's gate is the constant given, not a trained one";
        return 0;
    }
    struct weight gate;
    char name[64];
    snprintf(name, sizeof name, "blk.%d.attn_infini_gate.weight", layer->index);
    if (model_weight(model, name, 1, s->n_head, false, &gate, err)) return -1;
    if (!gate.data)
        return fail(err, "%s: infini attention needs tensor '%s', which is missing: give a checkpoint or "
                    "--adapter that has it, or a constant, --attn infini:gate=0.5",
                    gguf_path(model->file), name);
    weight_row(s->kernels, &gate, 0, state->gates);
    for (int h = 0; h < s->n_head; h++) state->gates[h] = 1 / (1 + expf(-state->gates[h]));
    return 0;
}

static int infini_init(struct attn_layer *layer, const struct model *model, struct error *err) {
    const struct attn_shape *s = layer->shape;
    const struct infini_params *params = layer->params;
    struct infini *state = calloc(1, sizeof *state);
    layer->state = state;
    if (!state) return fail(err, "out of memory for the state of layer %d", layer->index);
    state->attend = attend_select(kernels_isa(s->kernels), true);
    size_t d = (size_t)s->head_dim;
    state->memory_bytes = (size_t)s->n_head_kv * (d + 1) * d * sizeof(float);
    state->gates = alloc_zeroed((size_t)s->n_head * sizeof(float));
    state->memory = alloc_zeroed(state->memory_bytes);
    state->pending = alloc_zeroed(state->memory_bytes);
    if (!state->gates || !state->memory || !state->pending)
        return fail(err, "out of memory for the state of layer %d", layer->index);
    if (kv_reserve(&layer->cache, params->segment, err)) return -1;
    return load_gates(layer, model, err);
}

static void infini_forward(struct attn_layer *layer, const struct attn_batch *b, struct worker *w) {
    const struct attn_shape *s = layer->shape;
    const struct infini_params *params = layer->params;
    struct infini *state = layer->state;
    for (int i = 0; i < b->n;) {
        int used = layer->cache.heads[0].n, left = params->segment - used;
        struct attn_batch piece = *b;
        size_t q = (size_t)i * (size_t)(s->n_head * s->head_dim);
        size_t k = (size_t)i * (size_t)(s->n_head_kv * s->head_dim);
        piece.n = b->n - i < left ? b->n - i : left;
        piece.pos += i;
        piece.x += (size_t)i * (size_t)s->n_embd;
        piece.q += q;
        piece.k += k;
        piece.v += k;
        piece.rope += (size_t)i * 2 * (size_t)s->rope->n_pairs;
        piece.out += q;
        if (w->id == 0 && !b->prefill)
            for (int j = 1; j <= piece.n; j++) state->attended += (double)(used + j) * s->n_head;
        forward_piece(layer, &piece, w);
        i += piece.n;
    }
}

static void infini_stats(const struct attn_layer *layer, struct attn_stats *stats) {
    const struct infini *state = layer->state;
    *stats = (struct attn_stats){
        .bytes = kv_bytes(&layer->cache) + 2 * state->memory_bytes,
        .entries_cached = layer->cache.heads[0].n,
        .entries_attended = state->attended,
    };
}

static void infini_reset(struct attn_layer *layer) {
    struct infini *state = layer->state;
    memset(state->memory, 0, state->memory_bytes);
    memset(state->pending, 0, state->memory_bytes);
}

static int infini_state(struct attn_layer *layer, struct state_io *io, struct error *err) {
    const struct infini_params *params = layer->params;
    struct infini *state = layer->state;
    if (kv_state(&layer->cache, io, err)) return -1;
    for (int g = 0; g < layer->shape->n_head_kv; g++)
        if (layer->cache.heads[g].n != layer->cache.heads[0].n || layer->cache.heads[g].n >= params->segment)
            io->failed = true;
    state_bytes(io, state->memory, state->memory_bytes);
    state_bytes(io, state->pending, state->memory_bytes);
    return 0;
}

static void infini_free(struct attn_layer *layer) {
    struct infini *state = layer->state;
    if (!state) return;
    free(state->gates);
    free(state->memory);
    free(state->pending);
    free(state);
    layer->state = NULL;
}

const struct attn_mode attn_infini = {
    .name = "infini",
    .summary = "dense within a segment, a fixed-size compressive memory of all before it",
    .params = infini_table,
    .params_bytes = sizeof(struct infini_params),
    .init = infini_init,
    .forward = infini_forward,
    .stats = infini_stats,
    .free = infini_free,
    .reset = infini_reset,
    .state = infini_state,
};
