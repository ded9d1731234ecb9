/* mode_case.h - one attention layer on random inputs, for tests that compare a mode with its definition. */
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include "../../alloc.h"
#include "../../model.h"
#include "gguf_writer.h"

struct mode_case {
    int H, G, d;             /* query heads, KV heads, head size */
    int n_embd;
    int T;                   /* tokens */
    const char *options;     /* "k=4,select=prefix" */
    const char *tensor;      /* a trained parameter of layer 0, or NULL */
    int tensor_rows;         /* its rows; [rows, n_embd], or one row of H where 0 */
    int layer;               /* index of the layer */
};

/* How the tokens go through the layer: the first n_prompt in batches, the others one by one. */
struct schedule {
    int n_prompt, batch, n_threads;
    enum kv_type type;
    bool exact;
};

/* What the lossy types may cost, for outputs of about 1. */
static const struct { enum kv_type type; double tolerance; } lossy[] = {
    {KV_F16, 2e-2}, {KV_Q8_0, 0.1}, {KV_Q4_0, 1},
};

struct mode_data {
    float *x, *q, *k, *v;    /* [T, n_embd], [T, H, d], [T, G, d], [T, G, d] */
    float *parameter;        /* the tensor */
    int n_parameter;
    struct rope rope;
};

static inline float random_float(uint64_t *seed) {
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return (float)((double)(*seed >> 40) / (1 << 24)) * 2 - 1;
}

static inline float *random_floats(size_t n, float scale, uint64_t *seed) {
    float *x = alloc_zeroed(n * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = scale * random_float(seed);
    return x;
}

static inline struct mode_data make_data(const struct mode_case *c, uint64_t seed) {
    struct mode_data m = {.n_parameter = c->tensor_rows ? c->tensor_rows * c->n_embd : c->H};
    m.x = random_floats((size_t)(c->T * c->n_embd), 1, &seed);
    m.q = random_floats((size_t)(c->T * c->H * c->d), 3, &seed);
    m.k = random_floats((size_t)(c->T * c->G * c->d), 1, &seed);
    m.v = random_floats((size_t)(c->T * c->G * c->d), 1, &seed);
    m.parameter = random_floats((size_t)m.n_parameter, 1, &seed);
    m.rope = (struct rope){.n_pairs = c->d / 2, .interleaved = c->H != c->G, .magnitude = 1.1f};
    for (int i = 0; i < c->d / 2; i++) m.rope.inv_freq[i] = powf(100, -2.0f * (float)i / (float)c->d);
    return m;
}

static inline void free_data(struct mode_data *m) {
    float *all[] = {m->x, m->q, m->k, m->v, m->parameter};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

/* A file that has the tensor. */
static inline struct gguf *parameter_file(const struct mode_case *c, const struct mode_data *m,
                                          struct error *err) {
    char path[64];
    struct gguf_writer w = {0};
    uint64_t rows = c->tensor_rows ? (uint64_t)c->tensor_rows : 1;
    uint64_t shape[] = {(uint64_t)m->n_parameter / rows, rows};
    snprintf(path, sizeof path, "/tmp/mode_case.%d.gguf", (int)getpid());
    put_header(&w, 3, c->tensor ? 1 : 0, 0);
    if (c->tensor) put_tensor(&w, c->tensor, 2, shape, TENSOR_F32, 0);
    put_padding(&w, 32);
    if (c->tensor) put_bytes(&w, m->parameter, (size_t)m->n_parameter * sizeof(float));
    writer_save(&w, path);
    writer_free(&w);
    struct gguf *file = gguf_open(path, GGUF_MAPPED, err);
    unlink(path);
    return file;
}

struct forward_job {
    struct attn_layer *layer;
    const struct attn_batch *batch;
};

static inline void forward_worker(struct worker *w, void *arg) {
    struct forward_job *job = arg;
    job->layer->mode->forward(job->layer, job->batch, w);
}

/* Runs all tokens; the layer's queries, keys and values are copies. */
static inline int run_tokens(struct attn_layer *layer, const struct mode_case *c, const struct mode_data *m,
                             const struct schedule *how, struct team *team, float *out, struct error *err) {
    size_t q_size = (size_t)(c->H * c->d), kv_size = (size_t)(c->G * c->d);
    size_t table = 2 * (size_t)m->rope.n_pairs;
    int status = 0;
    for (int pos = 0; pos < c->T && !status;) {
        bool prefill = pos < how->n_prompt;
        int left = how->n_prompt - pos, n = !prefill ? 1 : left < how->batch ? left : how->batch;
        float *q = alloc_zeroed((size_t)n * q_size * sizeof *q);
        float *k = alloc_zeroed((size_t)n * kv_size * sizeof *k);
        float *v = alloc_zeroed((size_t)n * kv_size * sizeof *v);
        float *rope = alloc_zeroed((size_t)n * table * sizeof *rope);
        memcpy(q, m->q + (size_t)pos * q_size, (size_t)n * q_size * sizeof *q);
        memcpy(k, m->k + (size_t)pos * kv_size, (size_t)n * kv_size * sizeof *k);
        memcpy(v, m->v + (size_t)pos * kv_size, (size_t)n * kv_size * sizeof *v);
        for (int i = 0; i < n; i++) rope_table(&m->rope, pos + i, rope + (size_t)i * table);
        const struct attn_batch batch = {
            .n = n, .pos = pos, .prefill = prefill, .prompt_end = pos + n == how->n_prompt,
            .x = m->x + (size_t)pos * (size_t)c->n_embd, .q = q, .k = k, .v = v, .rope = rope,
            .out = out + (size_t)pos * q_size,
        };
        status = layer->mode->reserve ? layer->mode->reserve(layer, &batch, err) : 0;
        if (!status) team_run(team, forward_worker, &(struct forward_job){layer, &batch});
        free(q);
        free(k);
        free(v);
        free(rope);
        pos += n;
    }
    return status;
}

/* out [T, H, d] and the layer's figures; -1 with an error where the mode refuses. `again`: after running
 * once and being reset. */
static inline int run_mode(const struct attn_mode *mode, const struct mode_case *c, const struct mode_data *m,
                           const struct schedule *how, bool again, float *out, struct attn_stats *stats,
                           struct error *err) {
    struct model model = {.kernels = kernels_select(NULL, err), .file = parameter_file(c, m, err)};
    const struct attn_shape shape = {
        .n_embd = c->n_embd, .n_head = c->H, .n_head_kv = c->G, .head_dim = c->d,
        .scale = 1 / sqrtf((float)c->d), .exact = how->exact, .type_k = how->type, .type_v = how->type,
        .max_batch = how->batch, .n_ctx = c->T, .n_threads = how->n_threads, .rope = &m->rope, .kernels = model.kernels,
        .attend = attend_select(kernels_isa(model.kernels), how->exact),
    };
    struct attn_layer layer = {.index = c->layer, .mode = mode, .shape = &shape, .params = calloc(1, mode->params_bytes)};
    struct team *team = team_create(how->n_threads, err);
    params_defaults(mode->params, layer.params);
    int status = params_parse(mode->params, layer.params, c->options, strlen(c->options), mode->name, err);
    size_t scratch = attn_scratch_bytes(&shape), own = mode->scratch_bytes ? mode->scratch_bytes(&layer) : 0;
    layer.scratch = alloc_zeroed(own > scratch ? own : scratch);
    status = status || kv_init(&layer.cache, c->G, c->d, how->type, how->type, err)
              || mode->init(&layer, &model, err)
              || run_tokens(&layer, c, m, how, team, out, err) ? -1 : 0;
    if (!status && again) {
        kv_truncate(&layer.cache, 0);
        mode->reset(&layer);
        status = run_tokens(&layer, c, m, how, team, out, err);
    }
    if (!status && stats) mode->stats(&layer, stats);
    mode->free(&layer);
    kv_free(&layer.cache);
    team_free(team);
    free(layer.params);
    free(layer.scratch);
    gguf_close(model.file);
    return status;
}

/* The definition's RoPE: out [d] = R(x, pos). */
static inline void rotate(const struct rope *rope, int d, const double *x, int pos, double *out) {
    memcpy(out, x, (size_t)d * sizeof *out);
    for (int i = 0; i < rope->n_pairs; i++) {
        int a = rope->interleaved ? 2 * i : i, b = rope->interleaved ? 2 * i + 1 : i + rope->n_pairs;
        double angle = (double)pos * (double)rope->inv_freq[i], m = rope->magnitude;
        out[a] = m * (x[a] * cos(angle) - x[b] * sin(angle));
        out[b] = m * (x[a] * sin(angle) + x[b] * cos(angle));
    }
}

/* One head of one token as doubles: x is [T, n_heads, d]. */
static inline void head_of(const float *x, int n_heads, int d, int token, int head, double *out) {
    for (int c = 0; c < d; c++) out[c] = (double)x[(token * n_heads + head) * d + c];
}

static inline double dot_double(const double *x, const double *y, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += x[i] * y[i];
    return sum;
}

/* q_t.k_i / sqrt(d), each rotated at its position. */
static inline double rotated_score(const struct mode_case *c, const struct mode_data *m, int h, int t,
                                   int t_pos, int i, int i_pos) {
    double q[KV_MAX_DIM], k[KV_MAX_DIM], rq[KV_MAX_DIM], rk[KV_MAX_DIM];
    head_of(m->q, c->H, c->d, t, h, q);
    head_of(m->k, c->G, c->d, i, h / (c->H / c->G), k);
    rotate(&m->rope, c->d, q, t_pos, rq);
    rotate(&m->rope, c->d, k, i_pos, rk);
    return dot_double(rq, rk, c->d) / sqrt((double)c->d);
}

/* In place. */
static inline void softmax_double(double *x, int n) {
    double max = -INFINITY, sum = 0;
    for (int i = 0; i < n; i++) max = fmax(max, x[i]);
    for (int i = 0; i < n; i++) sum += x[i] = exp(x[i] - max);
    for (int i = 0; i < n; i++) x[i] /= sum;
}

/* Largest difference of n outputs. */
static inline double max_difference(const float *got, const double *want, size_t n) {
    double max = 0;
    for (size_t i = 0; i < n; i++) max = fmax(max, isnan(got[i]) ? INFINITY : fabs((double)got[i] - want[i]));
    return max;
}
