/* Eviction: every policy against its definition (evict_sim.h), for several batch sizes; what must stay,
 * budgets, memory, saved states, usage errors. */
#include "check.h"
#include "evict_case.h"
#include "evict_sim.h"
#include "../../state.h"

#define T SIM_TOKENS
#define PROMPT 160 /* the rest is generated */

static const struct evict_shape shape = {
    .n_layer = 3, .n_head = 6, .n_head_kv = 2, .head_dim = SIM_DIM, .n_threads = 1,
};

static float q[T * 6 * SIM_DIM], k[T * 2 * SIM_DIM], v[T * 2 * SIM_DIM];

static float noise(uint32_t *state) {
    float sum = -6;
    for (int i = 0; i < 12; i++) {
        *state = *state * 1664525u + 1013904223u;
        sum += (float)(*state >> 8) / (1 << 24);
    }
    return sum;
}

static void fill(void) {
    uint32_t state = 1;
    for (size_t i = 0; i < sizeof q / sizeof *q; i++) q[i] = noise(&state) + 0.5f;
    for (size_t i = 0; i < sizeof k / sizeof *k; i++) k[i] = noise(&state);
    for (size_t i = 0; i < sizeof v / sizeof *v; i++) v[i] = noise(&state);
}

/* Tokens n_past .. n_past + n - 1 of the random text. */
static int forward(struct evict_case *c, int n, struct error *err) {
    int t = c->n_past, H = shape.n_head, G = shape.n_head_kv, d = shape.head_dim;
    const struct evict_case_batch b = {.n = n, .prefill = t < PROMPT, .prompt_end = t + n == PROMPT,
                                       .q = q + t * H * d, .k = k + t * G * d, .v = v + t * G * d};
    return evict_case_forward(c, &b, err);
}

static int next_batch(int n_past, int batch) {
    if (n_past >= PROMPT) return 1;
    return PROMPT - n_past < batch ? PROMPT - n_past : batch;
}

/* ---- against the definition ---- */

static bool holds(const struct kv_head *head, int pos) {
    for (int i = 0; i < head->n; i++)
        if (head->pos[i] == pos) return true;
    return false;
}

/* Whether the head has kept `budget` of the first n entries, and no worse one than any that it has
 * dropped. */
static bool kept_the_best(const struct sim *s, const struct kv_head *head, int g, int n, int budget) {
    double worst_kept = INFINITY, best_dropped = -INFINITY;
    int kept = 0;
    for (int i = 0; i < n; i++) {
        if (holds(head, s->pos[g][i])) {
            kept++;
            worst_kept = fmin(worst_kept, s->score[g][i]);
        } else {
            best_dropped = fmax(best_dropped, s->score[g][i]);
        }
    }
    return kept == budget && (kept == n || best_dropped <= worst_kept + 1e-5 * fabs(worst_kept));
}

/* adakv: no head has dropped an entry that is better than one that another keeps beyond its safe ones. */
static bool shared_well(const struct sim *s, const struct kv_cache *cache) {
    int total = 0, n_safe = (int)(s->budget * s->safeguard);
    double best_dropped = -INFINITY, worst_kept = INFINITY;
    for (int g = 0; g < s->G; g++) {
        int kept = cache->heads[g].n;
        total += kept;
        if (kept < n_safe || !kept_the_best(s, &cache->heads[g], g, s->n[g], kept)) return false;
        for (int i = 0; i < s->n[g]; i++) {
            if (!holds(&cache->heads[g], s->pos[g][i])) best_dropped = fmax(best_dropped, s->score[g][i]);
            else if (kept > n_safe) worst_kept = fmin(worst_kept, s->score[g][i]);
        }
    }
    return total == s->G * s->budget && best_dropped <= worst_kept * (1 + 1e-5);
}

static int pyramid_budget(const struct sim *s, int n) {
    double last = (double)s->budget / s->beta, first = 2.0 * s->budget - last;
    if (first > n - s->window) {
        first = n - s->window;
        last = 2.0 * s->budget - first;
    }
    if (first < last || last < s->window + s->sink) return s->budget;
    return (int)nearbyint(first + (last - first) * s->layer / (s->n_layer - 1));
}

static void adopt(struct sim *s, const struct kv_cache *cache) {
    for (int g = 0; g < s->G; g++) {
        s->n[g] = cache->heads[g].n;
        memcpy(s->pos[g], cache->heads[g].pos, sizeof *s->pos[g] * (size_t)s->n[g]);
    }
}

static bool prompt_only(const char *policy) {
    return !strncmp(policy, "snapkv", 6) || !strncmp(policy, "adakv", 5) || !strncmp(policy, "pyramid", 7);
}

/* After a batch of n_batch tokens, which both have taken in and the implementation has finished. */
static bool right_choice(struct sim *s, const struct kv_cache *cache, int n_batch) {
    bool due = s->n[0] > s->budget && (!prompt_only(s->policy) || s->n_past == PROMPT), ok = true;
    bool renew = s->n_past == PROMPT || !s->renewed_at || s->n_past - s->renewed_at >= s->renew;
    if (due && renew) s->renewed_at = s->n_past;
    for (int g = 0; g < s->G && due; g++) sim_score(s, g, s->n[g], n_batch, renew);
    for (int g = 0; g < s->G && strcmp(s->policy, "adakv"); g++) {
        int budget = !due ? s->n[g] : !strcmp(s->policy, "pyramid") ? pyramid_budget(s, s->n[g]) : s->budget;
        if (!due) ok = ok && cache->heads[g].n == s->n[g];
        else ok = ok && cache->heads[g].n == budget && kept_the_best(s, &cache->heads[g], g, s->n[g], budget);
    }
    if (due && !strcmp(s->policy, "adakv")) ok = shared_well(s, cache);
    for (int g = 0; g < s->G; g++) {
        const struct kv_head *head = &cache->heads[g];
        for (int i = 1; i < head->n; i++) ok = ok && head->pos[i] > head->pos[i - 1];
    }
    return ok;
}

/* Apart from that all may have moved. */
static double key_error(const struct sim *s, const struct evict_case *c) {
    double worst = 0, expected[SIM_DIM];
    float key[SIM_DIM], back[2 * ROPE_MAX_PAIRS];
    for (int g = 0; g < s->G; g++)
        for (int i = 0; i < s->n[g]; i++) {
            sim_key(s, g, i, expected);
            kv_key(&c->cache, g, i, key);
            rope_table(&c->rope, -c->evict->layers[c->layer].heads[g].moved, back);
            rope_rotate(&c->rope, back, key);
            for (int x = 0; x < s->d; x++) worst = worse(worst, fabs(expected[x] - (double)key[x]));
        }
    return worst;
}

static void check_policy(const char *spec, struct sim s, int batch) {
    struct evict_case c;
    struct error err = {0};
    snprintf(s.policy, sizeof s.policy, "%.*s", (int)strcspn(spec, ":"), spec);
    CHECK(evict_case_open(&c, spec, &shape, 10000, KV_F32, &err) == 0);
    c.layer = s.layer;
    s.H = shape.n_head, s.G = shape.n_head_kv, s.d = shape.head_dim, s.n_layer = shape.n_layer;
    s.base = 10000, s.q = q, s.k = k, s.v = v;
    bool ok = true;
    while (c.n_past < T && ok) {
        int n = next_batch(c.n_past, batch);
        ok = forward(&c, n, &err) == 0;
        sim_add(&s, n);
        ok = ok && right_choice(&s, &c.cache, n);
        if (!ok) printf("%s, batches of %d: wrong after %d tokens\n", spec, batch, c.n_past);
        adopt(&s, &c.cache);
    }
    CHECK(ok);
    CHECK_NEAR(key_error(&s, &c), 0, 1e-4);
    evict_case_close(&c);
}

static const struct {
    const char *spec;
    struct sim sim;
} definitions[] = {
    {"window:budget=40", {.budget = 40, .sink = 4}},
    {"window:budget=40,sink=0", {.budget = 40}},
    {"streaming:budget=40,sink=3", {.budget = 40, .sink = 3, .rerotate = 1}},
    {"keydiff:budget=40", {.budget = 40, .sink = 4}},
    {"keydiff:budget=40,recent=8", {.budget = 40, .sink = 4, .recent = 8}},
    {"keydiff:budget=40,rerotate=1", {.budget = 40, .sink = 4, .rerotate = 1}},
    {"knorm:budget=40,sink=9,recent=31", {.budget = 40, .sink = 9, .recent = 31}},
    {"knorm:budget=40", {.budget = 40, .sink = 4}},
    {"h2o:budget=40,recent=20", {.budget = 40, .sink = 4, .recent = 20}},
    {"h2o:budget=40,rerotate=1", {.budget = 40, .sink = 4, .rerotate = 1}},
    {"tova:budget=40", {.budget = 40, .sink = 4}},
    {"lagkv:budget=60,lag=8", {.budget = 60, .sink = 4, .lag = 8}},
    {"lagkv:budget=60,lag=8,cross=1", {.budget = 60, .sink = 4, .lag = 8, .cross = 1}},
    {"lagkv:budget=60", {.budget = 60, .sink = 4, .lag = 128}},
    {"lagkv:budget=60,lag=8,rerotate=1", {.budget = 60, .sink = 4, .lag = 8, .rerotate = 1}},
    {"expected:budget=40,future=32,renew=16",
     {.budget = 40, .sink = 4, .future = 32, .covariance = 1, .renew = 16}},
    {"expected:budget=40,future=8,covariance=0,epsilon=0.5,sink=0,rerotate=1",
     {.budget = 40, .future = 8, .renew = 64, .epsilon = 0.5, .rerotate = 1}},
    {"snapkv:budget=40,window=16", {.budget = 40, .sink = 4, .window = 16, .kernel = 5}},
    {"snapkv:budget=40,window=1,kernel=1,recent=10,rerotate=1",
     {.budget = 40, .sink = 4, .recent = 10, .window = 1, .kernel = 1, .rerotate = 1}},
    {"adakv:budget=40,window=8", {.budget = 40, .sink = 4, .window = 8, .kernel = 5, .safeguard = 0.2}},
    {"adakv:budget=40,window=8,safeguard=1",
     {.budget = 40, .sink = 4, .window = 8, .kernel = 5, .safeguard = 1}},
    {"pyramid:budget=80,window=8,beta=4", {.budget = 80, .sink = 4, .window = 8, .kernel = 5, .beta = 4}},
    {"pyramid:budget=80,window=8,beta=4",
     {.layer = 2, .budget = 80, .sink = 4, .window = 8, .kernel = 5, .beta = 4}},
};

static void check_definitions(void) {
    static const int batches[] = {1, 7, 64, PROMPT};
    for (size_t i = 0; i < sizeof definitions / sizeof *definitions; i++)
        for (int j = 0; j < 4; j++) check_policy(definitions[i].spec, definitions[i].sim, batches[j]);
}

/* ---- the driver ---- */

/* keydiff:block=N is what batches of N tokens give (a policy that sees keys alone can't tell). */
static void check_blocks(void) {
    struct evict_case blocks, batches;
    struct error err = {0};
    CHECK(evict_case_open(&blocks, "keydiff:budget=32,recent=3,block=12", &shape, 10000, KV_F16, &err) == 0);
    CHECK(evict_case_open(&batches, "keydiff:budget=32,recent=3", &shape, 10000, KV_F16, &err) == 0);
    CHECK(forward(&blocks, PROMPT, &err) == 0);
    CHECK(forward(&batches, 32, &err) == 0);
    while (batches.n_past < PROMPT) CHECK(forward(&batches, next_batch(batches.n_past, 12), &err) == 0);
    for (int g = 0; g < shape.n_head_kv; g++) {
        CHECK(blocks.cache.heads[g].n == 32 && batches.cache.heads[g].n == 32);
        CHECK(!memcmp(blocks.cache.heads[g].pos, batches.cache.heads[g].pos, 32 * sizeof(int)));
        CHECK(!memcmp(blocks.cache.heads[g].k, batches.cache.heads[g].k, 32 * blocks.cache.k_row_bytes));
        CHECK(!memcmp(blocks.cache.heads[g].v, batches.cache.heads[g].v, 32 * blocks.cache.v_row_bytes));
    }
    evict_case_close(&blocks);
    evict_case_close(&batches);
}

static bool same_caches(const struct kv_cache *a, const struct kv_cache *b) {
    for (int g = 0; g < a->n_head_kv; g++) {
        const struct kv_head *x = &a->heads[g], *y = &b->heads[g];
        if (x->n != y->n || memcmp(x->pos, y->pos, (size_t)x->n * sizeof *x->pos) ||
            memcmp(x->k, y->k, (size_t)x->n * a->k_row_bytes))
            return false;
    }
    return true;
}

static const char *const all_specs[] = {
    "window:budget=40", "streaming:budget=40", "keydiff:budget=40", "keydiff:budget=40,block=5",
    "knorm:budget=40", "h2o:budget=40", "tova:budget=40", "lagkv:budget=40,lag=8",
    "expected:budget=40,future=20", "snapkv:budget=40,window=10", "pyramid:budget=80,window=4,beta=8",
    "adakv:budget=40,window=10",
};
#define N_SPECS (sizeof all_specs / sizeof *all_specs)

static void check_threads(const char *spec) {
    struct evict_case cases[3];
    struct error err = {0};
    static const int threads[] = {1, 2, 3};
    for (int i = 0; i < 3; i++) {
        struct evict_shape s = shape;
        s.n_threads = threads[i];
        CHECK(evict_case_open(&cases[i], spec, &s, 10000, KV_F16, &err) == 0);
        while (cases[i].n_past < T) CHECK(forward(&cases[i], next_batch(cases[i].n_past, 100), &err) == 0);
    }
    CHECK(same_caches(&cases[0].cache, &cases[1].cache) && same_caches(&cases[0].cache, &cases[2].cache));
    for (int i = 0; i < 3; i++) evict_case_close(&cases[i]);
}

static int save_or_restore(struct evict_case *c, FILE *f, bool saving, size_t size, struct error *err) {
    struct state_io io = {.file = f, .saving = saving, .left = size};
    int status = kv_state(&c->cache, &io, err);
    for (int l = 1; l < shape.n_layer; l++) c->evict->layers[l].cache = &c->cache;
    if (!status) status = evict_state(c->evict, &io, err);
    return status || io.failed ? -1 : 0;
}

/* A restored state goes on like the one it was saved from; so does one that was reset and fed again. */
static void check_state(const char *spec, int tokens) {
    struct evict_case a, b;
    struct error err = {0};
    FILE *f = tmpfile();
    CHECK(f && evict_case_open(&a, spec, &shape, 10000, KV_F16, &err) == 0);
    CHECK(evict_case_open(&b, spec, &shape, 10000, KV_F16, &err) == 0);
    CHECK(forward(&b, 90, &err) == 0); /* to be forgotten */
    evict_reset(b.evict);
    kv_truncate(&b.cache, 0);
    while (a.n_past < tokens) CHECK(forward(&a, next_batch(a.n_past, 50), &err) == 0);
    CHECK(save_or_restore(&a, f, true, 0, &err) == 0);
    size_t size = (size_t)ftell(f);
    rewind(f);
    CHECK(save_or_restore(&b, f, false, size, &err) == 0);
    b.n_past = a.n_past;
    while (a.n_past < T) {
        CHECK(forward(&a, next_batch(a.n_past, 50), &err) == 0);
        CHECK(forward(&b, next_batch(b.n_past, 50), &err) == 0);
    }
    CHECK(same_caches(&a.cache, &b.cache));
    evict_case_close(&a);
    evict_case_close(&b);
    fclose(f);
}

/* The sink's keys move with every token, but are rounded once. */
static void check_drift(void) {
    enum { TOKENS = 3000 };
    struct evict_case c;
    struct error err = {0};
    CHECK(evict_case_open(&c, "streaming:budget=40", &shape, 10000, KV_F16, &err) == 0);
    int G = shape.n_head_kv, d = shape.head_dim;
    for (int t = 0; t < TOKENS; t++) {
        size_t at = (size_t)(t % T);
        const struct evict_case_batch b = {.n = 1, .q = q + at * (size_t)(shape.n_head * d),
                                           .k = k + at * (size_t)(G * d), .v = v + at * (size_t)(G * d)};
        CHECK(evict_case_forward(&c, &b, &err) == 0);
    }
    for (int g = 0; g < G; g++)
        for (int i = 0; i < 4; i++) {
            float want[KV_MAX_DIM], got[KV_MAX_DIM], table[2 * ROPE_MAX_PAIRS];
            memcpy(want, k + (i * G + g) * d, sizeof *want * (size_t)d);
            rope_table(&c.rope, TOKENS - 40 + i, table);
            rope_rotate(&c.rope, table, want);
            kv_key(&c.cache, g, i, got);
            for (int x = 0; x < d; x++) CHECK_NEAR(got[x], want[x], 2e-3 * (1 + fabs(want[x])));
        }
    evict_case_close(&c);
}

/* A long prompt: nothing grows with it. */
static void check_memory(const char *spec) {
    struct evict_case c;
    struct error err = {0};
    CHECK(evict_case_open(&c, spec, &shape, 10000, KV_F16, &err) == 0);
    size_t early = 0;
    for (int round = 0; round < 40; round++) {
        const struct evict_case_batch b = {.n = 100, .prefill = true, .q = q, .k = k, .v = v};
        CHECK(evict_case_forward(&c, &b, &err) == 0);
        for (int g = 0; g < shape.n_head_kv; g++) CHECK(c.cache.heads[g].n == 40);
        if (round == 1) early = kv_bytes(&c.cache) + evict_bytes(c.evict);
    }
    CHECK(kv_bytes(&c.cache) + evict_bytes(c.evict) == early);
    CHECK(c.evict->cap <= 200);
    evict_case_close(&c);
}

/* snapkv holds the prompt until it is complete, then gives the memory back. */
static void check_snapkv_memory(void) {
    struct evict_case c;
    struct error err = {0};
    CHECK(evict_case_open(&c, "snapkv:budget=40,window=8", &shape, 10000, KV_F16, &err) == 0);
    for (int round = 0; round < 100; round++) {
        const struct evict_case_batch b = {.n = 100, .prefill = true, .prompt_end = round == 99,
                                           .q = q, .k = k, .v = v};
        CHECK(evict_case_forward(&c, &b, &err) == 0);
        CHECK(c.cache.heads[0].n == (round < 99 ? 100 * (round + 1) : 40));
    }
    CHECK(c.cache.heads[0].cap < 200);
    evict_case_close(&c);
}

struct told {
    int calls, n, keep[T];
};

static void tell(void *owner, int head, const int *keep, int n) {
    struct told *told = owner;
    if (head != 1) return;
    told->calls++;
    told->n = n;
    memcpy(told->keep, keep, (size_t)n * sizeof *keep);
}

/* The mode hears which entries stay, by index, before they move. */
static void check_dropped(void) {
    struct evict_case c;
    struct error err = {0};
    struct told told = {0};
    CHECK(evict_case_open(&c, "keydiff:budget=40", &shape, 10000, KV_F32, &err) == 0);
    evict_attach(c.evict, 0, &c.cache, tell, &told);
    CHECK(forward(&c, 40, &err) == 0 && told.calls == 0);
    CHECK(forward(&c, 30, &err) == 0 && told.calls == 1 && told.n == 40);
    /* indices were positions still */
    for (int i = 0; i < 40; i++) CHECK(told.keep[i] == c.cache.heads[1].pos[i]);
    evict_case_close(&c);
}

/* ---- options ---- */

static void check_usage(const char *spec, const char *says) {
    struct evict_case c;
    struct error err = {0};
    CHECK(evict_case_open(&c, spec, &shape, 10000, KV_F16, &err) == -1 && err.usage);
    if (!strstr(err.text, says)) printf("%s: %s\n", spec, err.text);
    CHECK(strstr(err.text, says) && !strchr(err.text, '\n'));
    evict_case_close(&c);
}

static void check_options(void) {
    check_usage("", "no policy ''");
    check_usage("lru:budget=9", "no policy 'lru'");
    check_usage("keydiff", "budget=N");
    check_usage("keydiff:sink=2", "budget=N");
    check_usage("keydiff:budget=0", "budget must be");
    check_usage("keydiff:budget=8,sink=4,recent=5", "budget=8 is less than what always stays");
    check_usage("keydiff:budget=8,kernel=5", "kernel=5");
    check_usage("snapkv:budget=80,kernel=4", "odd");
    check_usage("none:budget=8", "no options");
    check_usage("adakv:budget=80,rerotate=1", "rerotate=1");
    check_usage("pyramid:budget=80,rerotate=1", "rerotate=1");
    struct evict *e;
    struct error err = {0};
    CHECK(evict_create(&e, "none", &shape, &err) == 0 && e == NULL);
    CHECK(evict_create(&e, NULL, &shape, &err) == 0 && e == NULL);
}

int main(void) {
    fill();
    check_options();
    check_definitions();
    check_blocks();
    check_dropped();
    check_snapkv_memory();
    check_drift();
    for (size_t i = 0; i < N_SPECS; i++) {
        check_threads(all_specs[i]);
        check_state(all_specs[i], 150);
        check_state(all_specs[i], PROMPT + 30);
        if (!prompt_only(all_specs[i])) check_memory(all_specs[i]);
    }
    return check_done("evict");
}
