#include "cache.h"

#include <limits.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define ROUND 64   /* capacities are multiples of this many entries */
#define SLACK 4096 /* kv_trim() gives memory back once this many entries are unused */

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
    arena_free(&c->arena);
    free(c->heads);
    c->heads = NULL;
}

static int round_cap(int64_t cap) {
    cap = (cap + ROUND - 1) / ROUND * ROUND;
    return cap <= INT_MAX ? (int)cap : INT_MAX / ROUND * ROUND;
}

/* Points a head at its part of the arena, from `at` on; the end of it. */
static uint8_t *place(const struct kv_cache *c, struct kv_head *h, uint8_t *at) {
    size_t cap = (size_t)h->cap; /* a multiple of ROUND, which keeps the alignment of the arena */
    h->k = at;
    h->v = h->k + cap * c->k_row_bytes;
    h->pos = (int *)(void *)(h->v + cap * c->v_row_bytes);
    return (uint8_t *)(h->pos + cap);
}

static size_t entry_bytes(const struct kv_cache *c) { return sizeof(int) + c->k_row_bytes + c->v_row_bytes; }

/* Moves all heads to a new arena, each with the capacity cap_of(head, n); on failure they stay. */
static int resize(struct kv_cache *c, int (*cap_of)(const struct kv_head *h, int n), int n) {
    size_t total = 0;
    struct kv_head *heads = calloc((size_t)c->n_head_kv, sizeof *heads);
    if (!heads) return -1;
    for (int g = 0; g < c->n_head_kv; g++) {
        heads[g] = (struct kv_head){.n = c->heads[g].n, .cap = cap_of(&c->heads[g], n)};
        total += (size_t)heads[g].cap * entry_bytes(c);
    }
    struct arena arena;
    if (arena_create(&arena, total)) {
        free(heads);
        return -1;
    }
    uint8_t *at = arena.data;
    for (int g = 0; g < c->n_head_kv; g++) {
        const struct kv_head *old = &c->heads[g];
        size_t count = (size_t)old->n;
        at = place(c, &heads[g], at);
        if (!count) continue;
        memcpy(heads[g].k, old->k, count * c->k_row_bytes);
        memcpy(heads[g].v, old->v, count * c->v_row_bytes);
        memcpy(heads[g].pos, old->pos, count * sizeof *old->pos);
    }
    arena_free(&c->arena);
    free(c->heads);
    c->arena = arena;
    c->heads = heads;
    return 0;
}

/* Room for n more entries; if there isn't, for a quarter more than before. */
static int grown_cap(const struct kv_head *h, int n) {
    int64_t need = (int64_t)h->n + n, more = (int64_t)h->cap + h->cap / 4;
    if (need <= h->cap) return h->cap;
    return round_cap(need > more ? need : more);
}

/* What n entries and a quarter need, if that is less. */
static int trimmed_cap(const struct kv_head *h, int n) {
    (void)n;
    int cap = round_cap((int64_t)h->n + h->n / 4 + 1);
    return cap < h->cap ? cap : h->cap;
}

int kv_reserve(struct kv_cache *c, int n, struct error *err) {
    int64_t entries = 0;
    bool fits = true, countable = true;
    for (int g = 0; g < c->n_head_kv; g++) fits = fits && n <= c->heads[g].cap - c->heads[g].n;
    if (fits) return 0;
    if (n < c->expected - c->heads[0].n) n = c->expected - c->heads[0].n;
    for (int g = 0; g < c->n_head_kv; g++) {
        countable = countable && grown_cap(&c->heads[g], n) - c->heads[g].n >= n;
        entries += grown_cap(&c->heads[g], n);
    }
    if (countable && !resize(c, grown_cap, n)) return 0;
    return fail(err, "out of memory for a KV cache of %lld entries (%lld MB a layer): use a smaller "
                "context (-c), --kv-type or --kv-evict", (long long)(entries / c->n_head_kv),
                (long long)((entries * (int64_t)entry_bytes(c)) >> 20));
}

void kv_trim(struct kv_cache *c) {
    int64_t entries = 0, needed = 0;
    for (int g = 0; g < c->n_head_kv; g++) {
        entries += c->heads[g].cap;
        needed += trimmed_cap(&c->heads[g], 0);
    }
    if (entries - needed > SLACK && entries - needed > entries / 4)
        resize(c, trimmed_cap, 0); /* if it fails, nothing is lost */
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

void kv_read_then(struct kv_view *kv, const struct kv_view *then, int i) {
    kv->next_k = then->k + (size_t)i * then->k_row_bytes;
    kv->next_v = then->v + (size_t)i * then->v_row_bytes;
}

size_t kv_bytes(const struct kv_cache *c) { return c->arena.bytes; }

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
