#include "adapter.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_RANK 4096

static bool ends_in(const struct gguf_string *name, const char *suffix) {
    size_t n = strlen(suffix);
    return name->len >= n && !memcmp(name->data + name->len - n, suffix, n);
}

static bool is_update(const struct gguf_tensor *t) {
    return ends_in(&t->name, ".lora_a") || ends_in(&t->name, ".lora_b");
}

/* A wrong file should be noticed: it must say that it is an adapter, and for this architecture if it
 * names one. */
static int check_type(const struct model *m, const char *path, struct error *err) {
    struct gguf_string type, arch;
    if (!gguf_get_string(m->adapter, "general.type", &type) || type.len != 7 ||
        memcmp(type.data, "adapter", 7))
        return fail(err, "%s: not an adapter (general.type is not \"adapter\")", path);
    if (gguf_get_string(m->adapter, "general.architecture", &arch) &&
        (arch.len != strlen(m->config.arch) || memcmp(arch.data, m->config.arch, arch.len))) {
        char name[MAX_NAME];
        gguf_quote(arch, name, sizeof name);
        return fail(err, "%s: this adapter is for architecture %s, but the model is of '%s'", path, name,
                    m->config.arch);
    }
    return 0;
}

int adapter_open(struct model *m, const char *path, struct error *err) {
    m->adapter = gguf_open(path, GGUF_MAPPED, err);
    if (!m->adapter || check_type(m, path, err)) return -1;
    size_t n = 0;
    for (int i = 0; i < gguf_n_tensors(m->adapter); i++) n += is_update(gguf_tensor_at(m->adapter, i));
    m->loras = calloc(n + 1, sizeof *m->loras); /* each takes two of these tensors, so this is enough */
    return m->loras ? 0 : fail(err, "out of memory for the %zu updates of %s", n / 2, path);
}

/* One factor of the update of `name`, or NULL; *full becomes its name. */
static const struct gguf_tensor *find_factor(const struct model *m, const char *name, const char *suffix,
                                             char full[128]) {
    size_t stem = strlen(name);
    snprintf(full, 128, "%s%s", name, suffix);
    const struct gguf_tensor *t = gguf_find_tensor(m->adapter, full);
    if (t || stem < 7 || strcmp(name + stem - 7, ".weight")) return t;
    char brief[128];
    snprintf(brief, sizeof brief, "%.*s%s", (int)stem - 7, name, suffix);
    t = gguf_find_tensor(m->adapter, brief);
    if (t) memcpy(full, brief, sizeof brief);
    return t;
}

static int read_factor(const struct model *m, const char *name, int rows, int cols, struct weight *out,
                       struct error *err) {
    if (model_weight(m, name, rows, cols, true, out, err)) return -1;
    if (out->type == TENSOR_F32 || out->type == TENSOR_F16 || out->type == TENSOR_BF16) return 0;
    return fail(err, "%s: tensor '%s' must be F32, F16 or BF16", gguf_path(m->adapter), name);
}

int adapter_attach(struct model *m, const char *name, struct weight *w, struct error *err) {
    char name_a[128], name_b[128];
    if (!m->adapter || !w->data) return 0;
    const struct gguf_tensor *a = find_factor(m, name, ".lora_a", name_a);
    const struct gguf_tensor *b = find_factor(m, name, ".lora_b", name_b);
    if (!a && !b) return 0;
    if (!a || !b)
        return fail(err, "%s: tensor '%s' is missing, but the adapter has '%s'", gguf_path(m->adapter),
                    a ? name_b : name_a, a ? name_a : name_b);
    if (a->ne[1] < 1 || a->ne[1] > MAX_RANK)
        return fail(err, "%s: tensor '%s' is of rank %lld, outside 1..%d", gguf_path(m->adapter), name_a,
                    (long long)a->ne[1], MAX_RANK);
    struct lora *lora = &m->loras[m->n_loras];
    int rank = (int)a->ne[1];
    if (read_factor(m, name_a, rank, w->cols, &lora->a, err)) return -1;
    if (read_factor(m, name_b, w->rows, rank, &lora->b, err)) return -1;
    double alpha = rank;
    gguf_get_float(m->adapter, "adapter.lora.alpha", &alpha);
    lora->scale = (float)(alpha / rank);
    if (!isfinite(lora->scale)) return fail(err, "%s: key 'adapter.lora.alpha' is %g", gguf_path(m->adapter), alpha);
    if (rank > m->max_rank) m->max_rank = rank;
    m->n_loras++;
    m->weights_bytes += (size_t)rank * lora->a.row_bytes + (size_t)w->rows * lora->b.row_bytes;
    w->lora = lora;
    return 0;
}

int adapter_check(const struct model *m, struct error *err) {
    for (int i = 0; m->adapter && i < gguf_n_tensors(m->adapter); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(m->adapter, i);
        bool taken = !is_update(t);
        for (int j = 0; j < m->n_loras && !taken; j++)
            taken = m->loras[j].a.data == t->data || m->loras[j].b.data == t->data;
        if (taken) continue;
        char name[MAX_NAME];
        gguf_quote(t->name, name, sizeof name);
        return fail(err, "%s: tensor %s updates no weight that this model has and that can be updated",
                    gguf_path(m->adapter), name);
    }
    return 0;
}
