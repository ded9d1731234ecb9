#include "cache.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#define ROUND 64   /* capacities are multiples of this many entries */
#define SLACK 4096 /* kv_keep() gives memory back once this many entries are unused */

static const char *const type_names[] = {
    [KV_F32] = "f32", [KV_F16] = "f16", [KV_Q8_0] = "q8_0", [KV_Q4_0] = "q4_0",
};

int kv_init(struct kv_cache *c, int n_head_kv, int head_dim, enum kv_type type_k, enum kv_type type_v,
            struct error *err) {
    *c = (struct kv_cache){.n_head_kv = n_head_kv, .head_dim = head_dim, .type_k = type_k, .type_v = type_v};
    if (head_dim < 1 || head_dim > KV_MAX_DIM)
        return fail(err, "a head size of %d is not supported: it must be 1 to %d", head_dim, KV_MAX_DIM);
    c->store = kv_row_store;
    c->k_row_bytes = kv_row_bytes(type_k, head_dim);
    c->v_row_bytes = kv_row_bytes(type_v, head_dim);
    c->heads = calloc((size_t)n_head_kv, sizeof *c->heads);
    if (!c->heads) return fail(err, "out of memory for a KV cache of %d heads", n_head_kv);
    return 0;
}

void kv_free(struct kv_cache *c) {
    if (!c->heads) return;
    for (int g = 0; g < c->n_head_kv; g++) {
        free(c->heads[g].pos);
        free(c->heads[g].k);
        free(c->heads[g].v);
    }
    free(c->heads);
    c->heads = NULL;
}

/* Sets the capacity of a head, which stays as it was on failure. */
static int resize(const struct kv_cache *c, struct kv_head *h, int cap) {
    size_t n = (size_t)cap;
    void *pos = realloc(h->pos, n * sizeof *h->pos);
    if (pos) h->pos = pos;
    void *k = realloc(h->k, n * c->k_row_bytes);
    if (k) h->k = k;
    void *v = realloc(h->v, n * c->v_row_bytes);
    if (v) h->v = v;
    if (!pos || !k || !v) return -1;
    h->cap = cap;
    return 0;
}

int kv_reserve(struct kv_cache *c, int n, struct error *err) {
    for (int g = 0; g < c->n_head_kv; g++) {
        struct kv_head *h = &c->heads[g];
        if (n <= h->cap - h->n) continue;
        int64_t need = (int64_t)h->n + n, cap = (int64_t)h->cap + h->cap / 4;
        if (cap < need) cap = need;
        cap = (cap + ROUND - 1) / ROUND * ROUND;
        if (cap > INT_MAX || resize(c, h, (int)cap))
            return fail(err, "out of memory for a KV cache of %lld entries (%lld MB a layer): use a smaller "
                        "context (-c), --kv-type or --kv-evict", (long long)cap,
                        (long long)(cap * c->n_head_kv * (int64_t)(c->k_row_bytes + c->v_row_bytes) >> 20));
    }
    return 0;
}

void kv_write(const struct kv_cache *c, int head, int i, int pos, const float *k, const float *v) {
    const struct kv_head *h = &c->heads[head];
    h->pos[i] = pos;
    c->store(c->type_k, c->head_dim, k, h->k + (size_t)i * c->k_row_bytes);
    c->store(c->type_v, c->head_dim, v, h->v + (size_t)i * c->v_row_bytes);
}

void kv_advance(struct kv_cache *c, int n) {
    for (int g = 0; g < c->n_head_kv; g++) c->heads[g].n += n;
}

void kv_append(struct kv_cache *c, int head, int pos, const float *k, const float *v) {
    kv_write(c, head, c->heads[head].n, pos, k, v);
    c->heads[head].n++;
}

void kv_key(const struct kv_cache *c, int head, int i, float *out) {
    kv_row_load(c->type_k, c->head_dim, c->heads[head].k + (size_t)i * c->k_row_bytes, out);
}

void kv_value(const struct kv_cache *c, int head, int i, float *out) {
    kv_row_load(c->type_v, c->head_dim, c->heads[head].v + (size_t)i * c->v_row_bytes, out);
}

int kv_run(const int *keep, int n, int i) {
    int end = i + 1;
    while (end < n && keep[end] == keep[end - 1] + 1) end++;
    return end;
}

void kv_keep(struct kv_cache *c, int head, const int *keep, int n) {
    struct kv_head *h = &c->heads[head];
    for (int i = 0, end; i < n; i = end) {
        end = kv_run(keep, n, i);
        size_t to = (size_t)i, from = (size_t)keep[i], count = (size_t)(end - i);
        if (to == from) continue;
        memmove(h->pos + to, h->pos + from, count * sizeof *h->pos);
        memmove(h->k + to * c->k_row_bytes, h->k + from * c->k_row_bytes, count * c->k_row_bytes);
        memmove(h->v + to * c->v_row_bytes, h->v + from * c->v_row_bytes, count * c->v_row_bytes);
    }
    h->n = n;
    int cap = (n + n / 4 + ROUND) / ROUND * ROUND;
    if (h->cap / 2 > cap && h->cap - cap > SLACK) resize(c, h, cap); /* if it fails, nothing is lost */
}

void kv_truncate(struct kv_cache *c, int pos) {
    for (int g = 0; g < c->n_head_kv; g++) {
        struct kv_head *h = &c->heads[g];
        while (h->n > 0 && h->pos[h->n - 1] >= pos) h->n--;
    }
}

struct kv_view kv_view(const struct kv_cache *c, int head) {
    const struct kv_head *h = &c->heads[head];
    return (struct kv_view){
        .d = c->head_dim,
        .type_k = c->type_k,
        .type_v = c->type_v,
        .k_row_bytes = c->k_row_bytes,
        .v_row_bytes = c->v_row_bytes,
        .k = h->k,
        .v = h->v,
    };
}

size_t kv_bytes(const struct kv_cache *c) {
    size_t bytes = 0;
    for (int g = 0; c->heads && g < c->n_head_kv; g++)
        bytes += (size_t)c->heads[g].cap * (sizeof(int) + c->k_row_bytes + c->v_row_bytes);
    return bytes;
}

const char *kv_type_name(enum kv_type type) { return type_names[type]; }

static int type_parse(const char *text, size_t len, enum kv_type *type) {
    for (size_t i = 0; i < sizeof type_names / sizeof *type_names; i++) {
        if (strlen(type_names[i]) == len && !memcmp(text, type_names[i], len)) {
            *type = (enum kv_type)i;
            return 0;
        }
    }
    return -1;
}

int kv_types_parse(const char *text, enum kv_type *k, enum kv_type *v, struct error *err) {
    const char *comma = strchr(text, ',');
    enum kv_type types[2];
    size_t len = comma ? (size_t)(comma - text) : strlen(text);
    const char *second = comma ? comma + 1 : text;
    if (type_parse(text, len, &types[0]) || type_parse(second, strlen(second), &types[1]))
        return fail_usage(err, "--kv-type %s: unknown type; give one of f32, f16, q8_0, q4_0, or two as K,V", text);
    *k = types[0];
    *v = types[1];
    return 0;
}
