#include "evict.h"

#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../state.h"

extern const struct evict_policy evict_window, evict_streaming, evict_keydiff, evict_knorm, evict_h2o,
    evict_tova, evict_snapkv, evict_pyramid, evict_adakv, evict_lagkv, evict_expected;

static const struct evict_policy none = {.name = "none", .summary = "nothing is evicted"};

const struct evict_policy *const evict_policies[] = {
    &none, &evict_window, &evict_streaming, &evict_keydiff, &evict_knorm, &evict_h2o, &evict_tova,
    &evict_snapkv, &evict_pyramid, &evict_adakv, &evict_lagkv, &evict_expected,
    NULL,
};

const struct evict_policy *evict_policy_find(const char *name, size_t len) {
    for (int i = 0; evict_policies[i]; i++)
        if (strlen(evict_policies[i]->name) == len && !memcmp(evict_policies[i]->name, name, len))
            return evict_policies[i];
    return NULL;
}

/* ---- options ---- */

static int check_options(const struct evict *e, struct error *err) {
    const struct evict_options *o = e->options;
    const struct evict_policy *p = e->policy;
    if (!o->budget)
        return fail_usage(err, "--kv-evict %s: say with budget=N how many entries a KV head may keep",
                          p->name);
    if ((long long)o->sink + o->recent > o->budget)
        return fail_usage(err, "--kv-evict %s: budget=%d is less than what always stays: sink=%d and "
                          "recent=%d", p->name, o->budget, o->sink, o->recent);
    if (o->rerotate && p->uneven)
        return fail_usage(err, "--kv-evict %s: rerotate=1 makes no sense here: heads or layers keep "
                          "different numbers of entries, but a new token needs one position", p->name);
    return p->check ? p->check(o, err) : 0;
}

static int parse(struct evict *e, const char *params, struct error *err) {
    const struct evict_policy *p = e->policy;
    e->options = calloc(1, p->options_bytes);
    if (!e->options) return fail(err, "out of memory for the options of --kv-evict %s", p->name);
    char owner[64];
    snprintf(owner, sizeof owner, "--kv-evict %s", p->name);
    params_defaults(p->params, e->options);
    if (params_parse(p->params, e->options, params, strlen(params), owner, err)) return -1;
    return check_options(e, err);
}

/* ---- life ---- */

static int create_layers(struct evict *e, struct error *err) {
    const struct evict_shape *s = &e->shape;
    e->memo_size = e->policy->memo_size ? e->policy->memo_size(e) : 0;
    e->state_bytes = e->policy->state_bytes ? e->policy->state_bytes(e) : 0;
    e->layers = calloc((size_t)s->n_layer, sizeof *e->layers);
    e->budgets = calloc((size_t)s->n_head_kv, sizeof *e->budgets);
    if (!e->layers || !e->budgets) return fail(err, "out of memory for --kv-evict");
    for (int i = 0; i < s->n_layer; i++) {
        struct evict_layer *l = &e->layers[i];
        *l = (struct evict_layer){.evict = e, .index = i};
        l->heads = calloc((size_t)s->n_head_kv, sizeof *l->heads);
        if (e->state_bytes) l->state = calloc(1, e->state_bytes);
        if (!l->heads || (e->state_bytes && !l->state))
            return fail(err, "out of memory for --kv-evict %s: it keeps %zu bytes a layer", e->policy->name,
                        e->state_bytes);
    }
    return 0;
}

int evict_create_policy(struct evict **out, const struct evict_policy *policy, const char *params,
                        const struct evict_shape *shape, struct error *err) {
    struct evict *e = calloc(1, sizeof *e);
    *out = NULL;
    if (!e) return fail(err, "out of memory for --kv-evict");
    e->policy = policy;
    e->shape = *shape;
    if (parse(e, params, err) || create_layers(e, err)) {
        evict_free(e);
        return -1;
    }
    *out = e;
    return 0;
}

int evict_create(struct evict **out, const char *spec, const struct evict_shape *shape, struct error *err) {
    *out = NULL;
    if (!spec) return 0;
    size_t len = strcspn(spec, ":");
    const struct evict_policy *policy = evict_policy_find(spec, len);
    if (!policy)
        return fail_usage(err, "--kv-evict: there is no policy '%.*s': see --list-evict",
                          (int)(len < 60 ? len : 60), spec);
    if (policy == &none) return spec[len] ? fail_usage(err, "--kv-evict none has no options") : 0;
    return evict_create_policy(out, policy, spec[len] ? spec + len + 1 : "", shape, err);
}

void evict_attach(struct evict *e, int layer, struct kv_cache *cache,
                  void (*dropped)(void *owner, int head, const int *keep, int n), void *owner) {
    struct evict_layer *l = &e->layers[layer];
    l->cache = cache;
    l->dropped = dropped;
    l->owner = owner;
}

void evict_free(struct evict *e) {
    if (!e) return;
    for (int i = 0; e->layers && i < e->shape.n_layer; i++) {
        struct evict_layer *l = &e->layers[i];
        for (int g = 0; l->heads && g < e->shape.n_head_kv; g++) {
            free(l->heads[g].memo);
            free(l->heads[g].exact);
        }
        free(l->heads);
        free(l->state);
    }
    free(e->layers);
    free(e->options);
    free(e->scores);
    free(e->keep);
    free(e->spare);
    free(e->budgets);
    free(e->attention);
    free(e);
}

void evict_reset(struct evict *e) {
    for (int i = 0; i < e->shape.n_layer; i++) {
        if (e->state_bytes) memset(e->layers[i].state, 0, e->state_bytes);
        for (int g = 0; g < e->shape.n_head_kv; g++) {
            struct evict_head *h = &e->layers[i].heads[g];
            h->known = h->n_exact = h->moved = 0;
        }
    }
}

size_t evict_bytes(const struct evict *e) {
    size_t bytes = 0;
    for (int i = 0; i < e->shape.n_layer; i++) {
        bytes += e->state_bytes;
        for (int g = 0; g < e->shape.n_head_kv; g++) {
            const struct evict_head *h = &e->layers[i].heads[g];
            bytes += sizeof(float) * (size_t)e->memo_size * (size_t)h->cap;
            bytes += sizeof(float) * (size_t)e->shape.head_dim * (size_t)h->exact_cap;
        }
    }
    return bytes;
}

/* ---- room ---- */

static int most_entries(const struct evict_layer *l) {
    int most = 0;
    for (int g = 0; g < l->cache->n_head_kv; g++)
        if (l->cache->heads[g].n > most) most = l->cache->heads[g].n;
    return most;
}

static int reserve_memo(struct evict_head *h, int n_before, int n, int memo_size) {
    int need = n_before + n;
    size_t entry = sizeof *h->memo * (size_t)memo_size;
    if (need > h->cap) {
        float *memo = realloc(h->memo, entry * (size_t)(need + need / 4));
        if (!memo) return -1;
        h->memo = memo;
        h->cap = need + need / 4;
    }
    memset((char *)h->memo + entry * (size_t)n_before, 0, entry * (size_t)n);
    return 0;
}

/* Room for the exact keys of a head with n entries. */
static int reserve_exact(const struct evict *e, struct evict_head *h, int n) {
    int cap = n + n / 4;
    if (e->policy->oldest_first && n > e->options->sink) n = cap = e->options->sink;
    if (!e->options->rerotate || n <= h->exact_cap) return 0;
    float *exact = realloc(h->exact, sizeof *exact * (size_t)e->shape.head_dim * (size_t)cap);
    if (!exact) return -1;
    h->exact = exact;
    h->exact_cap = cap;
    return 0;
}

/* A conversation may have gone back: what is remembered of entries that are gone goes, too. */
static void forget_beyond(struct evict_head *h, int n) {
    if (h->known > n) h->known = n;
    if (h->n_exact > n) h->n_exact = n;
}

static int reserve_scratch(struct evict *e, int cap) {
    size_t n = (size_t)e->shape.n_head_kv * (size_t)cap;
    float *scores = realloc(e->scores, n * sizeof *scores);
    if (scores) e->scores = scores;
    float *spare = realloc(e->spare, 2 * n * sizeof *spare);
    if (spare) e->spare = spare;
    int *keep = realloc(e->keep, n * sizeof *keep);
    if (keep) e->keep = keep;
    float *attention = NULL;
    if (e->policy->uses_attention) {
        attention = realloc(e->attention, evict_attention_bytes(&e->shape, cap));
        if (attention) e->attention = attention;
    }
    if (!scores || !spare || !keep || (e->policy->uses_attention && !attention)) return -1;
    e->cap = cap;
    return 0;
}

int evict_reserve(struct evict *e, int n, struct error *err) {
    int most = 0;
    for (int i = 0; i < e->shape.n_layer; i++)
        if (most_entries(&e->layers[i]) > most) most = most_entries(&e->layers[i]);
    bool ok = most <= INT_MAX / 2 - n;
    for (int i = 0; ok && i < e->shape.n_layer; i++)
        for (int g = 0; ok && g < e->shape.n_head_kv; g++) {
            struct evict_head *h = &e->layers[i].heads[g];
            int n_before = e->layers[i].cache->heads[g].n;
            forget_beyond(h, n_before);
            if (e->memo_size) ok = !reserve_memo(h, n_before, n, e->memo_size);
            if (ok) ok = !reserve_exact(e, h, n_before + n);
        }
    if (ok && most + n > e->cap) ok = !reserve_scratch(e, most + n + (most + n) / 4);
    return ok ? 0 : fail(err, "out of memory for --kv-evict %s over %d entries: try a smaller -b",
                         e->policy->name, most + n);
}

static void places_state(const struct evict *e, struct evict_head *h, struct state_io *io) {
    state_int(io, &h->moved, 0, INT_MAX / 2);
    state_int(io, &h->n_exact, 0, h->exact_cap);
    state_bytes(io, h->exact, sizeof *h->exact * (size_t)h->n_exact * (size_t)e->shape.head_dim);
}

int evict_state(struct evict *e, struct state_io *io, struct error *err) {
    for (int i = 0; i < e->shape.n_layer; i++) {
        struct evict_layer *l = &e->layers[i];
        state_bytes(io, l->state, e->state_bytes);
        for (int g = 0; g < e->shape.n_head_kv; g++) {
            struct evict_head *h = &l->heads[g];
            int n = l->cache->heads[g].n;
            bool room = io->saving || !reserve_exact(e, h, n);
            if (room && !io->saving && e->memo_size) room = !reserve_memo(h, 0, n, e->memo_size);
            if (!room)
                return fail(err, "out of memory for --kv-evict %s over %d entries", e->policy->name, n);
            if (e->options->rerotate) places_state(e, h, io);
            if (!e->memo_size) continue;
            state_int(io, &h->known, 0, n);
            state_bytes(io, h->memo, sizeof *h->memo * (size_t)e->memo_size * (size_t)n);
        }
    }
    return 0;
}

/* ---- for policies ---- */

#define LANES 16 /* independent sums, which the compiler can put into vectors */

float evict_dot(const float *x, const float *y, int n) {
    float lanes[LANES] = {0}, sum = 0;
    int i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) lanes[j] += x[i + j] * y[i + j];
    for (; i < n; i++) sum += x[i] * y[i];
    for (int j = 0; j < LANES; j++) sum += lanes[j];
    return sum;
}

float evict_sum(const float *x, int n) {
    float lanes[LANES] = {0}, sum = 0;
    int i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) lanes[j] += x[i + j];
    for (; i < n; i++) sum += x[i];
    for (int j = 0; j < LANES; j++) sum += lanes[j];
    return sum;
}

void evict_key(const struct evict_layer *l, int head, int i, float *key) {
    const struct kv_cache *c = l->cache;
    const uint8_t *row = c->heads[head].k + (size_t)i * c->k_row_bytes;
    l->evict->shape.attend->load(c->type_k, c->head_dim, row, key);
}

void evict_value(const struct evict_layer *l, int head, int i, float *value) {
    const struct kv_cache *c = l->cache;
    const uint8_t *row = c->heads[head].v + (size_t)i * c->v_row_bytes;
    l->evict->shape.attend->load(c->type_v, c->head_dim, row, value);
}

float *evict_scores(const struct evict *e, int head) { return e->scores + (size_t)head * (size_t)e->cap; }

/* ---- the step ---- */

/* How many of a head's entries a round looks at. */
static int in_round(const struct evict_layer *l, int head, int limit) {
    int n = l->cache->heads[head].n;
    return n < limit ? n : limit;
}

/* Scores the first n entries of a head; what must stay gets more than any score. */
static void score_head(struct evict_layer *l, int head, int n) {
    const struct evict *e = l->evict;
    const int *pos = l->cache->heads[head].pos;
    float *scores = evict_scores(e, head);
    e->policy->score(l, head, n, scores);
    for (int i = 0; i < n; i++)
        if (!isfinite(scores[i])) scores[i] = scores[i] > 0 ? FLT_MAX : -FLT_MAX;
    for (int i = 0; i < n && pos[i] < e->options->sink; i++) scores[i] = INFINITY;
    for (int i = n > e->options->recent ? n - e->options->recent : 0; i < n; i++) scores[i] = INFINITY;
}

/* Rows of `size` floats: those that `keep` [n] lists move to the front. */
static void keep_rows(float *rows, const int *keep, int n, int size) {
    for (int i = 0, end; i < n; i = end) {
        end = kv_run(keep, n, i);
        memmove(rows + (size_t)i * (size_t)size, rows + (size_t)keep[i] * (size_t)size,
                sizeof *rows * (size_t)size * (size_t)(end - i));
    }
}

/* Closes the gaps that `gone` entries have left, for RoPE: what stood before a gap moves towards the newest.
 * keep [n] lists where the entries were. */
static void rerotate(const struct evict_layer *l, int head, const int *keep, int n, int gone) {
    const struct evict_shape *s = &l->evict->shape;
    struct evict_head *h = &l->heads[head];
    struct rope turn = *s->rope;
    turn.magnitude = 1;
    float table[2 * ROPE_MAX_PAIRS];
    int d = s->head_dim, distance = 0, known = 0;
    while (known < n && keep[known] < h->n_exact) known++;
    keep_rows(h->exact, keep, known, d);
    h->n_exact = known;
    h->moved += gone;
    for (int i = 0; i < n && keep[i] - i < gone; i++) {
        float *key = h->exact + (size_t)i * (size_t)d;
        if (i == h->n_exact) evict_key(l, head, h->n_exact++, key);
        if (distance != gone - (keep[i] - i)) {
            distance = gone - (keep[i] - i);
            rope_table(&turn, distance, table);
        }
        rope_rotate(&turn, table, key);
        uint8_t *row = l->cache->heads[head].k + (size_t)i * l->cache->k_row_bytes;
        s->attend->store(l->cache->type_k, d, key, row);
    }
}

int evict_rope_pos(const struct evict *e, int layer, int n_past) {
    const struct evict_layer *l = &e->layers[layer];
    return e->options->rerotate ? l->heads[0].moved + l->cache->heads[0].n : n_past;
}

/* Tells the policy of every entry that is not kept. */
static void forget(struct evict_layer *l, int head, const int *keep, int n) {
    for (int i = 0, kept = 0; i < l->cache->heads[head].n; i++) {
        if (kept < n && keep[kept] == i) kept++;
        else l->evict->policy->forget(l, head, i);
    }
}

/* Of the first n entries of a head, as scored, the best `budget` stay; of those after them all. */
static void prune_head(struct evict_layer *l, int head, int n, int budget) {
    const struct evict *e = l->evict;
    int total = l->cache->heads[head].n;
    int *keep = e->keep + (size_t)head * (size_t)e->cap;
    if (n <= budget) return;
    float *spare = e->spare + (size_t)(e->shape.n_head_kv + head) * (size_t)e->cap;
    select_best(e->shape.select, evict_scores(e, head), n, budget, keep, spare);
    for (int i = n; i < total; i++) keep[budget + i - n] = i;
    total -= n - budget;
    if (e->policy->forget) forget(l, head, keep, total);
    if (l->dropped) l->dropped(l->owner, head, keep, total);
    if (e->memo_size) keep_rows(l->heads[head].memo, keep, total, e->memo_size);
    if (l->heads[head].known > budget) l->heads[head].known = budget;
    kv_keep(l->cache, head, keep, total);
    if (e->options->rerotate) rerotate(l, head, keep, total, n - budget);
}

void evict_step(struct evict *e, int layer, const struct evict_batch *b, struct worker *w) {
    struct evict_layer *l = &e->layers[layer];
    const struct evict_policy *p = e->policy;
    const struct evict_options *o = e->options;
    int G = e->shape.n_head_kv, most = most_entries(l);
    bool due = most > o->budget && (b->prompt_end || !p->prompt_only);
    if (p->observe) p->observe(l, b, due, w);
    if (!due) return;

    int rounds = o->block ? (most - o->budget + o->block - 1) / o->block : 1;
    for (int round = 0; round < rounds; round++) {
        int limit = o->block ? o->budget + o->block : most;
        for (int g; (g = team_next(w)) < G;) score_head(l, g, in_round(l, g, limit));
        team_barrier(w);
        if (p->share) {
            if (w->id == 0) p->share(l, e->budgets);
            team_barrier(w);
        }
        for (int g; (g = team_next(w)) < G;)
            prune_head(l, g, in_round(l, g, limit), p->share ? e->budgets[g] : o->budget);
        team_barrier(w);
    }
    if (w->id == 0) kv_trim(l->cache); /* nobody reads it until the next batch */
}
