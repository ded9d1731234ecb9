/* test_sparse.c - MoBA, top-k and what they find keys with, against their definitions in double precision. */
#include "check.h"
#include "mode_case.h"

#include "../../kernels/sparse.h"

extern const struct attn_mode attn_moba, attn_topk;

/* ---- the definitions ---------------------------------------------------------------- */

struct options {
    bool moba;
    int block, blocks;       /* moba: positions per block, blocks attended to */
    int k, recent, sink;     /* topk */
    bool sparse[2];          /* whether prompt and generated tokens attend sparsely */
};

/* Marks the n best of those scores that are finite; the first wins a tie. */
static void mark_best(const double *scores, int n_scores, int n, bool *chosen) {
    for (int i = 0; i < n_scores; i++) {
        int better = 0;
        for (int j = 0; j < n_scores; j++)
            better += scores[j] > scores[i] || (scores[j] == scores[i] && j < i);
        if (isfinite(scores[i]) && better < n) chosen[i] = true;
    }
}

static void mark_moba(const struct options *o, const double *scores, const bool *visible, int t,
                      bool *chosen) {
    int n_blocks = t / o->block + 1;
    double *gates = calloc((size_t)n_blocks, sizeof *gates);
    bool *best = calloc((size_t)n_blocks, sizeof *best);
    int *count = calloc((size_t)n_blocks, sizeof *count);
    for (int i = 0; i <= t; i++)
        if (visible[i]) {
            gates[i / o->block] += scores[i];
            count[i / o->block]++;
        }
    for (int j = 0; j < n_blocks; j++)
        gates[j] = count[j] && j < n_blocks - 1 ? gates[j] / count[j] : -INFINITY;
    mark_best(gates, n_blocks, o->blocks - 1, best);
    best[n_blocks - 1] = true;
    for (int i = 0; i <= t; i++) chosen[i] = best[i / o->block];
    free(gates);
    free(best);
    free(count);
}

static void mark_topk(const struct options *o, const double *scores, const bool *visible, int t,
                      bool *chosen) {
    double *rest = calloc((size_t)t + 1, sizeof *rest);
    for (int i = 0; i <= t; i++) {
        chosen[i] = i < o->sink || i > t - o->recent;
        rest[i] = chosen[i] || !visible[i] ? -INFINITY : scores[i];
    }
    mark_best(rest, t + 1, o->k, chosen);
    free(rest);
}

/* Output [d] of query head h at token t, which sees the entries marked; returns how many it attends to. */
static int define_row(const struct mode_case *c, const struct mode_data *m, const struct options *o,
                      bool sparse, const bool *visible, int t, int h, double *out) {
    double *p = calloc((size_t)t + 1, sizeof *p), v[KV_MAX_DIM];
    bool *chosen = calloc((size_t)t + 1, sizeof *chosen);
    int n = 0;
    for (int i = 0; i <= t; i++) p[i] = rotated_score(c, m, h, t, t, i, i);
    if (!sparse) memset(chosen, 1, (size_t)t + 1);
    else (o->moba ? mark_moba : mark_topk)(o, p, visible, t, chosen);
    for (int i = 0; i <= t; i++) {
        if (!chosen[i] || !visible[i]) p[i] = -INFINITY;
        else n++;
    }
    softmax_double(p, t + 1);
    memset(out, 0, (size_t)c->d * sizeof *out);
    for (int i = 0; i <= t; i++) {
        head_of(m->v, c->G, c->d, i, h / (c->H / c->G), v);
        for (int j = 0; j < c->d; j++) out[j] += p[i] * v[j];
    }
    free(p);
    free(chosen);
    return n;
}

/* ---- whole texts --------------------------------------------------------------------- */

static void text_of(const struct options *o, const char *index, char *text, size_t size) {
    if (o->moba)
        snprintf(text, size, "block=%d,topk=%d,decode=%s", o->block, o->blocks,
                 o->sparse[1] ? "sparse" : "dense");
    else
        snprintf(text, size, "k=%d,recent=%d,sink=%d,prefill=%s,index=%s", o->k, o->recent, o->sink,
                 o->sparse[0] ? "sparse" : "dense", index);
}

static void test_text(int H, int G, int d, const struct options *o, const char *index) {
    char options[128];
    text_of(o, index, options, sizeof options);
    const struct attn_mode *mode = o->moba ? &attn_moba : &attn_topk;
    const struct mode_case c = {H, G, d, 8, 90, options, NULL, 0, 0};
    struct mode_data m = make_data(&c, (uint64_t)(H * 7 + d));
    size_t n = (size_t)(c.T * H * d);
    double *want[2] = {calloc(n, sizeof **want), calloc(n, sizeof **want)}; /* as prompt, as generated text */
    int *attended = calloc((size_t)c.T, sizeof *attended);
    float *out = calloc(n, sizeof *out), *first = calloc(n, sizeof *first);
    bool visible[90];
    struct error err;
    struct attn_stats stats;
    memset(visible, 1, sizeof visible);
    for (int t = 0; t < c.T; t++)
        for (int h = 0; h < H; h++)
            for (int generated = 0; generated < 2; generated++) {
                int count = define_row(&c, &m, o, o->sparse[generated], visible, t, h,
                                       want[generated] + (t * H + h) * d);
                if (generated) attended[t] += count;
            }
    const struct schedule schedules[] = {
        {c.T, c.T, 1, KV_F32, true},    {c.T, 1, 2, KV_F32, true}, {c.T, 7, 3, KV_F32, true},
        {c.T / 2, 20, 2, KV_F32, true}, {1, 1, 1, KV_F32, true},
    };
    for (size_t i = 0; i < sizeof schedules / sizeof *schedules; i++) {
        size_t prompt = (size_t)(schedules[i].n_prompt * H * d);
        double expected = 0;
        for (int t = schedules[i].n_prompt; t < c.T; t++) expected += attended[t];
        CHECK(run_mode(mode, &c, &m, &schedules[i], i % 2, out, &stats, &err) == 0);
        CHECK_NEAR(max_difference(out, want[0], prompt), 0, 2e-5);
        CHECK_NEAR(max_difference(out + prompt, want[1] + prompt, n - prompt), 0, 2e-5);
        CHECK_NEAR(stats.entries_attended, (i % 2 ? 2 : 1) * expected, 1e-6);
        CHECK_NEAR(stats.entries_cached, c.T, 1e-9);
    }
    /* Lossy keys: MoBA's gates stay in float32, so that only the values are off. */
    for (size_t i = 0; i < 3 && o->moba; i++) {
        const struct schedule how = {c.T, 32, 2, lossy[i].type, true};
        CHECK(run_mode(mode, &c, &m, &how, false, out, NULL, &err) == 0);
        CHECK_NEAR(max_difference(out, want[0], n), 0, lossy[i].tolerance);
    }
    for (int threads = 1; threads <= 3; threads++) {
        const struct schedule how = {c.T / 2, c.T / 2, threads, KV_Q8_0, false};
        CHECK(run_mode(mode, &c, &m, &how, false, threads == 1 ? first : out, NULL, &err) == 0);
        CHECK(threads == 1 || !memcmp(first, out, n * sizeof *out));
    }
    free_data(&m);
    free(want[0]);
    free(want[1]);
    free(attended);
    free(out);
    free(first);
}

/* ---- with eviction ----------------------------------------------------------------------- */

/* Goes through the text in batches after each of which every KV head loses entries at random; then back to
 * position `back` and on again. */
static void test_dropped(const struct options *o, int batch, int back) {
    enum { H = 4, G = 2, D = 16, T = 80 };
    char options[128];
    text_of(o, "page", options, sizeof options);
    const struct attn_mode *mode = o->moba ? &attn_moba : &attn_topk;
    const struct mode_case c = {H, G, D, 8, T, options, NULL, 0, 0};
    struct mode_data m = make_data(&c, 5);
    struct error err;
    const struct attn_shape shape = {
        .n_head = H, .n_head_kv = G, .head_dim = D, .scale = 0.25f, .exact = true, .max_batch = batch,
        .n_ctx = T, .n_threads = 2, .rope = &m.rope, .kernels = kernels_select(NULL, &err),
        .attend = attend_select("c", true),
    };
    struct attn_layer layer = {.mode = mode, .shape = &shape, .params = calloc(1, mode->params_bytes)};
    struct team *team = team_create(2, &err);
    float out[T * H * D];
    double want[T * H * D];
    bool visible[G][T] = {{false}};
    uint64_t seed = 3;
    params_defaults(mode->params, layer.params);
    CHECK(params_parse(mode->params, layer.params, options, strlen(options), "", &err) == 0);
    size_t scratch = attn_scratch_bytes(&shape), own = mode->scratch_bytes(&layer);
    layer.scratch = alloc_zeroed(own > scratch ? own : scratch);
    CHECK(kv_init(&layer.cache, G, D, KV_F32, KV_F32, &err) == 0 && mode->init(&layer, NULL, &err) == 0);
    for (int pos = 0; pos < T; pos += batch) {
        int n = T - pos < batch ? T - pos : batch;
        if (back > 0 && pos >= 2 * back) {
            pos = back;
            back = 0;
            mode->truncate(&layer, pos);
            for (int g = 0; g < G; g++) memset(visible[g] + pos, 0, (size_t)(T - pos) * sizeof visible[g][0]);
            n = T - pos < batch ? T - pos : batch;
        }
        float rope[T * D], q[T * H * D], k[T * G * D];
        for (int i = 0; i < n; i++) rope_table(&m.rope, pos + i, rope + i * D);
        memcpy(q, m.q + pos * H * D, (size_t)(n * H * D) * sizeof *q);
        memcpy(k, m.k + pos * G * D, (size_t)(n * G * D) * sizeof *k);
        const struct attn_batch b = {.n = n, .pos = pos, .prefill = true, .q = q, .k = k,
                                     .v = m.v + pos * G * D, .rope = rope, .out = out + pos * H * D};
        CHECK(mode->reserve(&layer, &b, &err) == 0);
        team_run(team, forward_worker, &(struct forward_job){&layer, &b});
        for (int t = pos; t < pos + n; t++)
            for (int h = 0; h < H; h++) {
                bool *seen = visible[h / (H / G)];
                seen[t] = true;
                define_row(&c, &m, o, true, seen, t, h, want + (t * H + h) * D);
            }
        for (int g = 0; g < G; g++) {
            int keep[T], kept = 0;
            const struct kv_head *head = &layer.cache.heads[g];
            for (int i = 0; i < head->n; i++) {
                if (random_float(&seed) < 0.6f) keep[kept++] = i;
                else visible[g][head->pos[i]] = false;
            }
            mode->dropped(&layer, g, keep, kept);
            kv_keep(&layer.cache, g, keep, kept);
        }
    }
    CHECK_NEAR(max_difference(out, want, T * H * D), 0, 2e-5);
    mode->free(&layer);
    kv_free(&layer.cache);
    team_free(team);
    free(layer.params);
    free(layer.scratch);
    free_data(&m);
}

/* ---- the attention mass kept -------------------------------------------------------------- */

static void test_mass(const char *options, const struct options *o) {
    const struct mode_case c = {4, 2, 16, 8, 70, options, NULL, 0, 0};
    const struct attn_mode *mode = o->moba ? &attn_moba : &attn_topk;
    struct mode_data m = make_data(&c, 8);
    float out[70 * 4 * 16];
    double want = 0;
    bool visible[70], chosen[70];
    struct error err;
    struct attn_stats stats;
    memset(visible, 1, sizeof visible);
    for (int t = 0; t < c.T; t++)
        for (int h = 0; h < c.H; h++) {
            double p[70];
            for (int i = 0; i <= t; i++) p[i] = rotated_score(&c, &m, h, t, t, i, i);
            memset(chosen, 0, sizeof chosen);
            (o->moba ? mark_moba : mark_topk)(o, p, visible, t, chosen);
            softmax_double(p, t + 1);
            for (int i = 0; i <= t; i++) want += chosen[i] ? p[i] : 0;
        }
    for (int batch = 1; batch < 90; batch += 22) {
        const struct schedule how = {50, batch, 2, KV_F32, true};
        CHECK(run_mode(mode, &c, &m, &how, false, out, &stats, &err) == 0);
        CHECK_NEAR(stats.rows_measured, c.T * c.H, 1e-9);
        CHECK_NEAR(stats.mass, want, 1e-3);
        CHECK(o->moba || stats.recall == stats.rows_measured);
    }
    free_data(&m);
}

/* ---- pages ------------------------------------------------------------------------------- */

/* Keys that change slowly along the text, as neighbouring tokens' do. */
static void smooth(float *k, int T, int width) {
    for (int i = width; i < T * width; i++) k[i] = 0.95f * k[i - width] + 0.3f * k[i];
}

/* Longer than what is read without looking at pages: how much of the exact choice is found, and that neither
 * the batch nor the threads matter. */
static void test_pages(int H, int G, int d) {
    const char *options = "k=32,recent=8,prefill=sparse,index=page,recall=1";
    const struct mode_case c = {H, G, d, 8, 1700, options, NULL, 0, 0};
    struct mode_data m = make_data(&c, 11);
    size_t n = (size_t)(c.T * H * d);
    float *out = calloc(n, sizeof *out), *first = calloc(n, sizeof *first);
    struct error err;
    struct attn_stats stats;
    smooth(m.k, c.T, G * d);
    for (int i = 0; i < 4; i++) {
        const struct schedule how[] = {
            {c.T, 512, 1, KV_F16, false}, {c.T, 512, 2, KV_F16, false}, {c.T, 100, 3, KV_F16, false},
            {c.T - 200, 777, 2, KV_F16, false},
        };
        CHECK(run_mode(&attn_topk, &c, &m, &how[i], i == 3, i ? out : first, &stats, &err) == 0);
        CHECK(i == 0 || !memcmp(first, out, n * sizeof *out));
        CHECK_NEAR(stats.rows_measured, (i == 3 ? 2.0 : 1.0) * c.T * H, 1e-6);
        CHECK(stats.recall / stats.rows_measured > 0.9 && stats.recall / stats.rows_measured < 1);
        CHECK(stats.mass / stats.rows_measured > 0.2 && stats.mass / stats.rows_measured < 1);
        CHECK_NEAR(stats.entries_attended, i == 3 ? 2.0 * 200 * H * (32 + 8 + 4) : 0, 1e-6);
    }
    free_data(&m);
    free(out);
    free(first);
}

/* reach() of every table against the keys themselves. */
static void test_reach(const char *isa, int d, int m, enum kv_type type) {
    enum { N = PAGE * PAGE_GROUP };
    struct error err;
    if (!kernels_select(isa, &err)) return;
    const struct sparse_kernels *s = sparse_select(isa);
    struct kv_cache cache;
    uint64_t seed = (uint64_t)d;
    float *keys = random_floats((size_t)(N * d), 1, &seed), *q = random_floats((size_t)(m * d), 1, &seed);
    float reach[8][PAGE_GROUP], key[KV_MAX_DIM];
    void *group = alloc_zeroed(page_group_bytes(d));
    CHECK(kv_init(&cache, 1, d, type, type, &err) == 0 && kv_reserve(&cache, N, &err) == 0);
    for (int i = 0; i < N; i++) kv_append(&cache, 0, i, keys + i * d, keys + i * d);
    struct kv_view kv = kv_view(&cache, 0);
    page_group_build(attend_select("c", true), &kv, 0, group);
    s->reach(d, group, q, (size_t)d, m, reach[0], PAGE_GROUP);
    for (int r = 0; r < m; r++)
        for (int p = 0; p < PAGE_GROUP; p++) {
            double want = 0, tolerance = 0;
            for (int c = 0; c < d; c++) {
                double low = INFINITY, high = -INFINITY, x = q[r * d + c];
                for (int i = 0; i < PAGE; i++) {
                    kv_key(&cache, 0, p * PAGE + i, key);
                    low = fmin(low, key[c]);
                    high = fmax(high, key[c]);
                }
                want += x * (low + high) / 2 + PAGE_REACH * fabs(x) * (high - low) / 2;
                tolerance += fabs(x) / 3; /* half a step of a range of 2, by which each end may be off */
            }
            CHECK_NEAR(reach[r][p], want, tolerance);
        }
    kv_free(&cache);
    free(keys);
    free(q);
    free(group);
}

/* The same numbers from every table. */
static void test_tables_agree(const char *isa) {
    enum { N = PAGE * PAGE_GROUP, D = 80, M = 7 };
    struct error err;
    if (!kernels_select(isa, &err)) return;
    const struct sparse_kernels *s = sparse_select(isa), *c = sparse_select("c");
    uint64_t seed = 9;
    float *keys = random_floats(N * D, 1, &seed), *x = random_floats(1000, 1, &seed);
    float got[M][PAGE_GROUP], want[M][PAGE_GROUP];
    int index[2][1000];
    void *group = alloc_zeroed(page_group_bytes(D));
    const struct kv_view kv = {
        .d = D, .type_k = KV_F32, .k_row_bytes = D * sizeof(float), .k = (uint8_t *)keys,
    };
    page_group_build(attend_select("c", true), &kv, 0, group);
    s->reach(D, group, x, D, M, got[0], PAGE_GROUP);
    c->reach(D, group, x, D, M, want[0], PAGE_GROUP);
    for (int r = 0; r < M; r++)
        for (int p = 0; p < PAGE_GROUP; p++) CHECK_NEAR(got[r][p], want[r][p], 1e-3);
    for (int n = 0; n < 1000; n += 37) {
        int count = c->at_least(x, n, 0.3f, index[0]);
        CHECK(s->at_least(x, n, 0.3f, index[1]) == count);
        CHECK(!memcmp(index[0], index[1], (size_t)count * sizeof(int)));
        CHECK(s->count(x, n, 0.3f) == count && c->count(x, n, 0.3f) == count);
    }
    free(keys);
    free(x);
    free(group);
}

/* ---- the k best --------------------------------------------------------------------------- */

/* Values of `kind`: 0 all different, 1 many ties, 2 all equal, 3 with NaNs and infinities, 4 periodic. */
static float value_of(int kind, int i, uint64_t *seed) {
    float x = random_float(seed);
    if (kind == 1) return roundf(x * 4);
    if (kind == 2) return 0.5f;
    if (kind == 3) return x > 0.9f ? NAN : x > 0.8f ? INFINITY : x < -0.8f ? -INFINITY : x;
    if (kind == 4) return (float)(i % 512 == 7) + x * 1e-3f;
    return x;
}

static void test_select(const char *isa, int n, int k, int kind) {
    struct error err;
    if (!kernels_select(isa, &err)) return;
    float *x = calloc((size_t)n, sizeof *x), *spare = calloc((size_t)n, sizeof *spare);
    int *best = calloc((size_t)n, sizeof *best), numbers = 0, expected = 0;
    uint64_t seed = (uint64_t)(n + kind);
    for (int i = 0; i < n; i++) {
        x[i] = value_of(kind, i, &seed);
        numbers += !isnan(x[i]);
    }
    int count = select_best(sparse_select(isa), x, n, k, best, spare);
    CHECK(count == (k < numbers ? k : numbers));
    for (int i = 0; i < n; i++) {
        int better = 0;
        for (int j = 0; j < n; j++) better += x[j] > x[i] || (x[j] == x[i] && j < i);
        if (isnan(x[i]) || better >= k) continue;
        CHECK(expected < count && best[expected] == i);
        expected++;
    }
    free(x);
    free(spare);
    free(best);
}

int main(void) {
    static const struct { int H, G, d; } shapes[] = {{4, 4, 16}, {6, 2, 32}, {3, 1, 24}, {10, 2, 64}};
    static const struct options options[] = {
        {.moba = true, .block = 8, .blocks = 3, .sparse = {true, true}},
        {.moba = true, .block = 7, .blocks = 4, .sparse = {true, false}},
        {.moba = true, .block = 1, .blocks = 5, .sparse = {true, true}},
        {.moba = true, .block = 16, .blocks = 1, .sparse = {true, true}},
        {.moba = true, .block = 8, .blocks = 99, .sparse = {true, true}},
        {.moba = true, .block = 100, .blocks = 1, .sparse = {true, true}},
        {.k = 6, .recent = 4, .sink = 2, .sparse = {true, true}},
        {.k = 6, .recent = 4, .sink = 2, .sparse = {false, true}},
        {.k = 0, .recent = 1, .sink = 0, .sparse = {true, true}},
        {.k = 1, .recent = 200, .sink = 3, .sparse = {true, true}},
        {.k = 9, .recent = 1, .sink = 50, .sparse = {true, true}},
        {.k = 500, .recent = 8, .sink = 4, .sparse = {true, true}},
    };
    static const char *const isas[] = {"c", "avx2", "avx512", "avx512vnni", "amx", "neon"};
    for (size_t i = 0; i < sizeof options / sizeof *options; i++)
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
            test_text(shapes[s].H, shapes[s].G, shapes[s].d, &options[i], "exact");
            if (!options[i].moba) test_text(shapes[s].H, shapes[s].G, shapes[s].d, &options[i], "page");
        }
    for (int batch = 1; batch <= 25; batch += 8)
        for (int i = 0; i < 9; i += 6) {
            test_dropped(&options[i], batch, 0);
            test_dropped(&options[i], batch, 20);
        }
    test_mass("block=8,topk=3,mass=1", &options[0]);
    test_mass("k=6,recent=4,sink=2,prefill=sparse,recall=1", &options[6]);
    for (int s = 0; s < 2; s++) test_pages(shapes[s].H, shapes[s].G, shapes[s].d);
    for (size_t i = 0; i < sizeof isas / sizeof *isas; i++) {
        for (int d = 3; d <= 256; d = d * 2 + 1) test_reach(isas[i], d, d % 5 + 1, d % 2 ? KV_F16 : KV_F32);
        test_reach(isas[i], 64, 3, KV_Q4_0);
        test_tables_agree(isas[i]);
        for (int kind = 0; kind < 5; kind++)
            for (int n = 1; n < 2000; n = n * 3 + 2)
                for (int k = 0; k < 2 * n; k = k * 3 + 1) test_select(isas[i], n, k, kind);
    }
    return check_done("sparse");
}
