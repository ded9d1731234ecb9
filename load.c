/* load.c - from a GGUF file to `struct model`: configuration, RoPE, weights. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "adapter.h"
#include "model.h"

/* Architectures differ in few things; what isn't in this table they share. */
struct architecture {
    const char *name;
    bool rope_interleaved; /* GGUF stores "llama" q and k weights permuted for pairs (2i, 2i+1) */
    bool qk_norm;          /* RMSNorm of every q and k head before RoPE */
};

static const struct architecture architectures[] = {
    {"llama", true, false}, /* Llama 1-3, SmolLM, Mistral, TinyLlama */
    {"qwen2", false, false},
    {"qwen3", false, true},
};

#define N_ARCHITECTURES (sizeof architectures / sizeof *architectures)

/* Limits that no real checkpoint reaches; below them sizes can't overflow. */
#define MAX_DIM (1 << 20)
#define MAX_LAYERS 4096

struct loader {
    struct model *m;
    const struct architecture *arch;
    struct error *err;
};

static const char *key_of(const struct loader *ld, char buf[128], const char *suffix) {
    snprintf(buf, 128, "%s.%s", ld->m->config.arch, suffix);
    return buf;
}

/* An integer of the architecture's own keys within [min, max]; `fallback` < 0 makes it required. Some
 * files give one value per layer: then all must agree. */
static int read_int(const struct loader *ld, const char *suffix, int64_t fallback, int64_t min, int64_t max,
                    int *out) {
    const struct gguf *file = ld->m->file;
    char key[128];
    key_of(ld, key, suffix);
    int64_t value = fallback;
    struct gguf_array array;
    if (gguf_get_array(file, key, &array)) {
        if (array.n == 0 || array.type == GGUF_STRING || array.type == GGUF_F32 || array.type == GGUF_F64)
            return fail(ld->err, "%s: key '%s' is not a number", gguf_path(file), key);
        value = gguf_array_int(&array, 0);
        for (size_t i = 1; i < array.n; i++)
            if (gguf_array_int(&array, i) != value)
                return fail(ld->err, "%s: key '%s' differs between layers, which is not supported",
                            gguf_path(file), key);
    } else if (!gguf_get_int(file, key, &value) && fallback < 0) {
        return fail(ld->err, "%s: key '%s' is missing or not an integer", gguf_path(file), key);
    }
    if (value < min || value > max)
        return fail(ld->err, "%s: key '%s' is %lld, outside %lld..%lld", gguf_path(file), key, (long long)value,
                    (long long)min, (long long)max);
    *out = (int)value;
    return 0;
}

static double read_float(const struct loader *ld, const char *suffix, double fallback) {
    char key[128];
    double value = fallback;
    gguf_get_float(ld->m->file, key_of(ld, key, suffix), &value);
    return value;
}

static int find_architecture(struct loader *ld) {
    const struct gguf *file = ld->m->file;
    struct gguf_string name;
    if (!gguf_get_string(file, "general.architecture", &name))
        return fail(ld->err, "%s: key 'general.architecture' is missing: not a model checkpoint", gguf_path(file));
    for (size_t i = 0; i < N_ARCHITECTURES; i++) {
        if (strlen(architectures[i].name) == name.len && !memcmp(architectures[i].name, name.data, name.len)) {
            ld->arch = &architectures[i];
            snprintf(ld->m->config.arch, sizeof ld->m->config.arch, "%s", architectures[i].name);
            return 0;
        }
    }
    char known[128] = "";
    for (size_t i = 0; i < N_ARCHITECTURES; i++) {
        size_t used = strlen(known);
        snprintf(known + used, sizeof known - used, "%s%s", i ? ", " : "", architectures[i].name);
    }
    char quoted[64];
    gguf_quote(name, quoted, sizeof quoted);
    return fail(ld->err, "%s: architecture %s is not supported (known: %s)", gguf_path(file), quoted, known);
}

static int load_config(struct loader *ld) {
    struct config *c = &ld->m->config;
    const char *path = gguf_path(ld->m->file);
    int n_expert;
    if (read_int(ld, "block_count", -1, 1, MAX_LAYERS, &c->n_layer)) return -1;
    if (read_int(ld, "embedding_length", -1, 1, MAX_DIM, &c->n_embd)) return -1;
    if (read_int(ld, "feed_forward_length", -1, 1, MAX_DIM, &c->n_ff)) return -1;
    if (read_int(ld, "attention.head_count", -1, 1, 4096, &c->n_head)) return -1;
    if (read_int(ld, "attention.head_count_kv", c->n_head, 1, 4096, &c->n_head_kv)) return -1;
    if (read_int(ld, "attention.key_length", c->n_embd / c->n_head, 2, 2 * ROPE_MAX_PAIRS, &c->head_dim)) return -1;
    if (read_int(ld, "context_length", 2048, 1, INT32_MAX / 2, &c->n_ctx_train)) return -1;
    if (read_int(ld, "expert_count", 0, 0, MAX_DIM, &n_expert)) return -1;
    if (n_expert > 0)
        return fail(ld->err, "%s: mixture-of-experts checkpoints (%d experts) are not supported", path, n_expert);
    if (c->n_head % c->n_head_kv)
        return fail(ld->err, "%s: %d query heads can't share %d KV heads evenly", path, c->n_head, c->n_head_kv);
    if ((int64_t)c->n_head * c->head_dim > MAX_DIM)
        return fail(ld->err, "%s: %d heads of size %d are too wide", path, c->n_head, c->head_dim);
    int value_dim;
    if (read_int(ld, "attention.value_length", c->head_dim, 1, MAX_DIM, &value_dim)) return -1;
    if (value_dim != c->head_dim)
        return fail(ld->err, "%s: values of size %d with keys of size %d are not supported", path, value_dim,
                    c->head_dim);
    c->norm_eps = (float)read_float(ld, "attention.layer_norm_rms_epsilon", 1e-5);
    if (!(c->norm_eps > 0 && c->norm_eps < 1)) return fail(ld->err, "%s: the norm epsilon is %g", path, c->norm_eps);
    return 0;
}

/* ---- RoPE ---- */

static int file_scaling(const struct loader *ld, int *scaling) {
    char key[128];
    struct gguf_string name;
    *scaling = ROPE_SCALE_NONE;
    if (!gguf_get_string(ld->m->file, key_of(ld, key, "rope.scaling.type"), &name)) {
        if (read_float(ld, "rope.scale_linear", 1) != 1) *scaling = ROPE_SCALE_LINEAR; /* older files */
        return 0;
    }
    static const struct { const char *name; int scaling; } known[] = {
        {"none", ROPE_SCALE_NONE}, {"", ROPE_SCALE_NONE}, {"linear", ROPE_SCALE_LINEAR},
        {"yarn", ROPE_SCALE_YARN}, {"llama3", ROPE_SCALE_LLAMA3},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strlen(known[i].name) == name.len && !memcmp(known[i].name, name.data, name.len)) {
            *scaling = known[i].scaling;
            return 0;
        }
    }
    char quoted[64];
    gguf_quote(name, quoted, sizeof quoted);
    return fail(ld->err, "%s: RoPE scaling %s is not supported: override it with --rope-scaling",
                gguf_path(ld->m->file), quoted);
}

/* The pair that makes `rotations` full turns over the original context (YaRN, section 3.2). */
static double yarn_pair(double rotations, int n_dims, double base, double n_ctx) {
    return n_dims * log(n_ctx / (rotations * 2 * M_PI)) / (2 * log(base));
}

/* YaRN (arXiv 2309.00071): fast pairs stay, slow pairs are interpolated, a ramp in between. */
static void scale_yarn(const struct loader *ld, struct rope *rope, double base, double factor) {
    double n_ctx = read_float(ld, "rope.scaling.original_context_length", ld->m->config.n_ctx_train);
    double fast = read_float(ld, "rope.scaling.yarn_beta_fast", 32);
    double slow = read_float(ld, "rope.scaling.yarn_beta_slow", 1);
    int n_dims = 2 * rope->n_pairs;
    double low = fmax(floor(yarn_pair(fast, n_dims, base, n_ctx)), 0);
    double high = fmin(ceil(yarn_pair(slow, n_dims, base, n_ctx)), n_dims - 1);
    for (int i = 0; i < rope->n_pairs; i++) {
        double ramp = fmin(fmax((i - low) / fmax(high - low, 0.001), 0), 1);
        rope->inv_freq[i] = (float)(rope->inv_freq[i] * ((1 - ramp) + ramp / factor));
    }
    rope->magnitude = (float)(read_float(ld, "rope.scaling.attn_factor", 1) * (factor > 1 ? 1 + 0.1 * log(factor) : 1));
}

/* Llama 3.1: converters write per-pair divisors as a tensor. */
static int scale_by_tensor(const struct loader *ld, struct rope *rope) {
    struct weight factors;
    if (model_weight(ld->m, "rope_freqs.weight", 1, rope->n_pairs, false, &factors, ld->err)) return -1;
    if (!factors.data) return 0;
    if (factors.type != TENSOR_F32)
        return fail(ld->err, "%s: tensor 'rope_freqs.weight' must be F32", gguf_path(ld->m->file));
    const float *divisor = (const float *)(const void *)factors.data;
    for (int i = 0; i < rope->n_pairs; i++) {
        if (!(divisor[i] > 0))
            return fail(ld->err, "%s: tensor 'rope_freqs.weight' has the factor %g", gguf_path(ld->m->file),
                        divisor[i]);
        rope->inv_freq[i] /= divisor[i];
    }
    return 0;
}

/* Llama 3.1 scaling by its formula, for files that name it and carry no tensor of factors. */
static void scale_llama3(const struct loader *ld, struct rope *rope, double factor) {
    double n_ctx = read_float(ld, "rope.scaling.original_context_length", 8192);
    double low = read_float(ld, "rope.scaling.low_freq_factor", 1);
    double high = read_float(ld, "rope.scaling.high_freq_factor", 4);
    for (int i = 0; i < rope->n_pairs; i++) {
        double turns = n_ctx * rope->inv_freq[i] / (2 * M_PI);
        double keep = fmin(fmax((turns - low) / (high - low), 0), 1);
        rope->inv_freq[i] = (float)(rope->inv_freq[i] * (keep + (1 - keep) / factor));
    }
}

static int load_rope(struct loader *ld, const struct rope_options *options) {
    struct config *c = &ld->m->config;
    struct rope *rope = &c->rope;
    const char *path = gguf_path(ld->m->file);
    int n_dims;
    if (read_int(ld, "rope.dimension_count", c->head_dim, 2, c->head_dim, &n_dims)) return -1;
    if (n_dims % 2) return fail(ld->err, "%s: key '%s.rope.dimension_count' is odd (%d)", path, c->arch, n_dims);
    double base = options->base > 0 ? options->base : read_float(ld, "rope.freq_base", 10000);
    if (!(base > 1 && isfinite(base))) return fail(ld->err, "%s: the RoPE base is %g", path, base);
    rope->n_pairs = n_dims / 2;
    rope->interleaved = ld->arch->rope_interleaved;
    rope->magnitude = 1;
    for (int i = 0; i < rope->n_pairs; i++) rope->inv_freq[i] = (float)pow(base, -2.0 * i / n_dims);

    int scaling = options->scaling;
    if (scaling < 0 && file_scaling(ld, &scaling)) return -1;
    if (scaling == ROPE_SCALE_LLAMA3 && gguf_find_tensor(ld->m->file, "rope_freqs.weight"))
        scaling = ROPE_SCALE_NONE; /* the tensor's divisors are that scaling */
    if (options->scaling < 0 && options->scale > 0 && scaling == ROPE_SCALE_NONE) scaling = ROPE_SCALE_LINEAR;
    double factor = read_float(ld, "rope.scaling.factor", read_float(ld, "rope.scale_linear", 1));
    if (options->scale > 0) factor = options->scale;
    if (!(factor > 0)) return fail(ld->err, "%s: the RoPE scaling factor is %g", path, factor);
    if (options->scaling != ROPE_SCALE_NONE && scale_by_tensor(ld, rope)) return -1;
    switch (scaling) {
    case ROPE_SCALE_LINEAR:
        for (int i = 0; i < rope->n_pairs; i++) rope->inv_freq[i] = (float)(rope->inv_freq[i] / factor);
        break;
    case ROPE_SCALE_YARN: scale_yarn(ld, rope, base, factor); break;
    case ROPE_SCALE_LLAMA3: scale_llama3(ld, rope, factor); break;
    default: break;
    }
    return 0;
}

/* ---- Weights ---- */

int model_weight(const struct model *model, const char *name, int rows, int cols, bool required,
                 struct weight *out, struct error *err) {
    memset(out, 0, sizeof *out);
    const struct gguf *file = model->adapter;
    const struct gguf_tensor *t = file ? gguf_find_tensor(file, name) : NULL;
    if (!t) {
        file = model->file;
        t = gguf_find_tensor(file, name);
    }
    if (!t) return required ? fail(err, "%s: tensor '%s' is missing", gguf_path(file), name) : 0;
    if (!t->data)
        return fail(err, "%s: tensor '%s' is of %s, which is not supported (known: F32, F16, BF16, Q8_0, Q4_0, "
                    "Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K)", gguf_path(file), name, tensor_type_name(t->type));
    if (t->ne[0] != cols || t->ne[1] != rows || t->ne[2] != 1 || t->ne[3] != 1)
        return fail(err, "%s: tensor '%s' is %lld x %lld, expected %d x %d", gguf_path(file), name,
                    (long long)t->ne[0], (long long)t->ne[1], cols, rows);
    *out = (struct weight){.type = t->type, .rows = rows, .cols = cols, .row_bytes = t->size / (size_t)rows,
                           .data = t->data};
    return 0;
}

/* One weight of a layer; name is without "blk.N." */
static int layer_weight(struct loader *ld, int l, const char *name, int rows, int cols, bool required,
                        struct weight *out) {
    char full[64];
    snprintf(full, sizeof full, "blk.%d.%s", l, name);
    if (model_weight(ld->m, full, rows, cols, required, out, ld->err)) return -1;
    if (!out->data) return 0;
    if (rows == 1 && out->type != TENSOR_F32)
        return fail(ld->err, "%s: tensor '%s' must be F32", gguf_path(ld->m->file), full);
    ld->m->weights_bytes += (size_t)rows * out->row_bytes;
    if (is_quantised(out->type)) ld->m->exact = false;
    return rows == 1 ? 0 : adapter_attach(ld->m, full, out, ld->err);
}

static int load_layer(struct loader *ld, int l) {
    const struct config *c = &ld->m->config;
    struct layer *layer = &ld->m->layers[l];
    int q = c->n_head * c->head_dim, kv = c->n_head_kv * c->head_dim, d = c->head_dim;
    bool qk_norm = ld->arch->qk_norm;
    return layer_weight(ld, l, "attn_norm.weight", 1, c->n_embd, true, &layer->attn_norm)
        || layer_weight(ld, l, "attn_q.weight", q, c->n_embd, true, &layer->wq)
        || layer_weight(ld, l, "attn_k.weight", kv, c->n_embd, true, &layer->wk)
        || layer_weight(ld, l, "attn_v.weight", kv, c->n_embd, true, &layer->wv)
        || layer_weight(ld, l, "attn_q.bias", 1, q, false, &layer->bq)
        || layer_weight(ld, l, "attn_k.bias", 1, kv, false, &layer->bk)
        || layer_weight(ld, l, "attn_v.bias", 1, kv, false, &layer->bv)
        || layer_weight(ld, l, "attn_q_norm.weight", 1, d, qk_norm, &layer->q_norm)
        || layer_weight(ld, l, "attn_k_norm.weight", 1, d, qk_norm, &layer->k_norm)
        || layer_weight(ld, l, "attn_output.weight", c->n_embd, q, true, &layer->wo)
        || layer_weight(ld, l, "ffn_norm.weight", 1, c->n_embd, true, &layer->ffn_norm)
        || layer_weight(ld, l, "ffn_gate.weight", c->n_ff, c->n_embd, true, &layer->w_gate)
        || layer_weight(ld, l, "ffn_up.weight", c->n_ff, c->n_embd, true, &layer->w_up)
        || layer_weight(ld, l, "ffn_down.weight", c->n_embd, c->n_ff, true, &layer->w_down);
}

/* What other programs would add: better no answer than one without it. */
static int refuse_biases(const struct loader *ld, int l) {
    static const char *const biases[] = {"attn_output", "ffn_gate", "ffn_up", "ffn_down", "attn_norm", "ffn_norm"};
    char name[64];
    for (size_t i = 0; i < sizeof biases / sizeof *biases; i++) {
        snprintf(name, sizeof name, "blk.%d.%s.bias", l, biases[i]);
        if (gguf_find_tensor(ld->m->file, name))
            return fail(ld->err, "%s: tensor '%s' is not supported", gguf_path(ld->m->file), name);
    }
    return 0;
}

static int load_weights(struct loader *ld) {
    struct model *m = ld->m;
    struct config *c = &m->config;
    const char *path = gguf_path(m->file);
    const struct gguf_tensor *embd = gguf_find_tensor(m->file, "token_embd.weight");
    if (!embd) return fail(ld->err, "%s: tensor 'token_embd.weight' is missing", path);
    if (embd->ne[1] < 1 || embd->ne[1] > INT32_MAX / 4)
        return fail(ld->err, "%s: tensor 'token_embd.weight' has %lld rows", path, (long long)embd->ne[1]);
    c->n_vocab = (int)embd->ne[1];
    if (model_weight(m, "token_embd.weight", c->n_vocab, c->n_embd, true, &m->token_embd, ld->err)) return -1;
    if (model_weight(m, "output_norm.weight", 1, c->n_embd, true, &m->output_norm, ld->err)) return -1;
    if (m->output_norm.type != TENSOR_F32)
        return fail(ld->err, "%s: tensor 'output_norm.weight' must be F32", path);
    if (model_weight(m, "output.weight", c->n_vocab, c->n_embd, false, &m->output, ld->err)) return -1;
    m->weights_bytes += (size_t)c->n_vocab * m->token_embd.row_bytes + m->output_norm.row_bytes;
    if (m->output.data) m->weights_bytes += (size_t)c->n_vocab * m->output.row_bytes;
    if (adapter_attach(m, "output.weight", &m->output, ld->err)) return -1;
    if (!m->output.data) m->output = m->token_embd;
    m->exact = !is_quantised(m->output.type);

    m->layers = calloc((size_t)c->n_layer, sizeof *m->layers);
    if (!m->layers) return fail(ld->err, "out of memory for %d layers", c->n_layer);
    for (int l = 0; l < c->n_layer; l++)
        if (load_layer(ld, l) || refuse_biases(ld, l)) return -1;
    return adapter_check(m, ld->err);
}

struct model *model_load(const char *path, const char *adapter_path, const struct kernels *kernels,
                         const struct load_options *options, struct error *err) {
    struct model *m = calloc(1, sizeof *m);
    if (!m) {
        fail(err, "out of memory for a model");
        return NULL;
    }
    m->kernels = kernels;
    struct loader ld = {.m = m, .err = err};
    m->file = gguf_open(path, options->access, err);
    if (!m->file || find_architecture(&ld) || (adapter_path && adapter_open(m, adapter_path, err))
        || load_config(&ld) || load_weights(&ld) || load_rope(&ld, &options->rope)) {
        model_free(m);
        return NULL;
    }
    return m;
}

void model_free(struct model *m) {
    if (!m) return;
    free(m->layers);
    free(m->loras);
    gguf_close(m->adapter);
    gguf_close(m->file);
    free(m);
}
