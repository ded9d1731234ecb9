/* test_mosa.c - MoSA against its definition in double precision. */
#include "check.h"
#include "mode_case.h"

extern const struct attn_mode attn_mosa;

struct options {
    int k, dense_heads;
    bool sequence, include_first, knorm;
};

/* Router scores [T] of one query head. Float, as ties are decided in float. */
static void scores_of(const struct mode_case *c, const struct mode_data *m, const struct options *o, int h,
                      float *r) {
    int group = c->H / c->G, rows = o->knorm ? c->G : c->tensor_rows, row = rows == c->H ? h : h / group;
    for (int t = 0; t < c->T; t++) {
        double logit = 0;
        if (o->knorm) {
            double k[KV_MAX_DIM];
            head_of(m->k, c->G, c->d, t, h / group, k);
            logit = -sqrt(dot_double(k, k, c->d) / c->d);
        } else {
            for (int j = 0; j < c->n_embd; j++)
                logit += (double)m->parameter[row * c->n_embd + j] * (double)m->x[t * c->n_embd + j];
        }
        r[t] = (float)(1 / (1 + exp(-logit)));
    }
}

/* Whether token i is among the k best of tokens [0, n). */
static bool is_member(const struct options *o, const float *r, int i, int n) {
    int better = 0;
    if (o->include_first && i == 0) return true;
    for (int j = 0; j < n; j++)
        better += (o->include_first && j == 0) || r[j] > r[i] || (r[j] == r[i] && j < i);
    return better < o->k;
}

static void define_head(const struct mode_case *c, const struct mode_data *m, const struct options *o, int h,
                        double *out) {
    int d = c->d;
    float *r = calloc((size_t)c->T, sizeof *r);
    double *p = calloc((size_t)c->T, sizeof *p);
    scores_of(c, m, o, h, r);
    for (int t = 0; t < c->T; t++) {
        double *row = out + (t * c->H + h) * d, v[KV_MAX_DIM];
        bool dense = h < o->dense_heads;
        int n = o->sequence ? c->T : t + 1;
        memset(row, 0, (size_t)d * sizeof *row);
        if (!dense && !is_member(o, r, t, n)) continue;
        for (int i = 0; i <= t; i++)
            p[i] = dense || is_member(o, r, i, n) ? rotated_score(c, m, h, t, t, i, i) : -INFINITY;
        softmax_double(p, t + 1);
        for (int i = 0; i <= t; i++) {
            head_of(m->v, c->G, d, i, h / (c->H / c->G), v);
            for (int j = 0; j < d; j++) row[j] += p[i] * v[j];
        }
        for (int j = 0; j < d && !dense; j++) row[j] *= (double)r[t];
    }
    free(r);
    free(p);
}

/* Entries that T tokens leave in the cache: routed sets hold k, dense KV heads all. */
static double expected_entries(const struct mode_case *c, const struct options *o) {
    int group = c->H / c->G, width = o->knorm || c->tensor_rows == c->G ? group : 1;
    int sets = c->H / width - o->dense_heads / width, dense = (o->dense_heads + group - 1) / group;
    return (double)(sets * (o->k < c->T ? o->k : c->T) + dense * c->T) / c->G;
}

static void test_case(const struct mode_case *c, const struct options *o) {
    struct mode_data m = make_data(c, (uint64_t)(o->k * 10 + c->G));
    size_t n = (size_t)(c->T * c->H * c->d);
    double *want = calloc(n, sizeof *want);
    float *out = calloc(n, sizeof *out), *first = calloc(n, sizeof *first);
    struct error err;
    struct attn_stats stats;
    /* A tie of tokens 4 and 9. */
    memcpy(m.x + 9 * c->n_embd, m.x + 4 * c->n_embd, (size_t)c->n_embd * sizeof *m.x);
    for (int h = 0; h < c->H; h++) define_head(c, &m, o, h, want);
    const struct schedule schedules[] = {
        {c->T, c->T, 1, KV_F32, true},  {c->T, 1, 2, KV_F32, true}, {c->T, 7, 3, KV_F32, true},
        {c->T / 2, 5, 2, KV_F32, true}, {1, 1, 1, KV_F32, true},
    };
    for (size_t i = 0; i < sizeof schedules / sizeof *schedules; i++) {
        if (o->sequence && i > 0) {
            CHECK(run_mode(&attn_mosa, c, &m, &schedules[i], false, out, NULL, &err) == -1);
            CHECK(err.usage && strstr(err.text, "sequence"));
            continue;
        }
        CHECK(run_mode(&attn_mosa, c, &m, &schedules[i], i % 2, out, &stats, &err) == 0);
        CHECK_NEAR(max_difference(out, want, n), 0, 2e-5);
        CHECK_NEAR(stats.entries_cached, expected_entries(c, o), 1e-9);
    }
    int n_prompt = o->sequence ? c->T : c->T / 2;
    for (size_t i = 0; i < 3; i++) {
        const struct schedule how = {n_prompt, n_prompt, 2, lossy[i].type, false};
        CHECK(run_mode(&attn_mosa, c, &m, &how, false, out, NULL, &err) == 0);
        CHECK_NEAR(max_difference(out, want, n), 0, lossy[i].tolerance);
    }
    for (int threads = 1; threads <= 3; threads++) {
        const struct schedule how = {n_prompt, n_prompt, threads, KV_F16, false};
        CHECK(run_mode(&attn_mosa, c, &m, &how, false, threads == 1 ? first : out, NULL, &err) == 0);
        CHECK(threads == 1 || !memcmp(first, out, n * sizeof *out));
    }
    free_data(&m);
    free(want);
    free(out);
    free(first);
}

static void test_options(int H, int G, int d, int router_rows, const struct options *o) {
    char options[128];
    snprintf(options, sizeof options, "k=%d,select=%s,dense_heads=%d,include_first=%d,router=%s", o->k,
             o->sequence ? "sequence" : "prefix", o->dense_heads, o->include_first,
             o->knorm ? "knorm" : "file");
    struct mode_case c = {H, G, d, 20, 70, options, "blk.0.attn_mosa_router.weight", router_rows, 0};
    if (o->knorm) c.tensor = NULL;
    test_case(&c, o);
}

/* At most k entries a head, of the size that the KV type has, however long the text. */
static void test_memory_is_bounded(void) {
    size_t bytes[2];
    struct error err;
    for (int i = 0; i < 2; i++) {
        const struct mode_case c = {4, 2, 16, 8, i ? 5000 : 500, "k=64,router=knorm", NULL, 0, 0};
        struct mode_data m = make_data(&c, 1);
        float *out = calloc((size_t)(c.T * c.H * c.d), sizeof *out);
        struct attn_stats stats;
        const struct schedule how = {c.T - 20, 64, 2, KV_F16, true};
        CHECK(run_mode(&attn_mosa, &c, &m, &how, false, out, &stats, &err) == 0);
        CHECK(stats.entries_cached == 64 && stats.entries_attended <= 20 * 64 * 4);
        bytes[i] = stats.bytes;
        free_data(&m);
        free(out);
    }
    CHECK(bytes[0] == bytes[1]);
    CHECK(bytes[0] == 2 * 64 * (2 * 16 * 2 + sizeof(int) + sizeof(float)));
}

static void test_errors(void) {
    struct mode_case c = {2, 2, 8, 8, 4, "k=4", NULL, 0, 0};
    struct mode_data m = make_data(&c, 1);
    float out[4 * 2 * 8];
    struct error err = {0};
    const struct schedule how = {4, 4, 1, KV_F32, true};
    CHECK(run_mode(&attn_mosa, &c, &m, &how, false, out, NULL, &err) == -1);
    CHECK(!err.usage && strstr(err.text, "blk.0.attn_mosa_router.weight"));
    CHECK(strstr(err.text, "mosa:router=knorm"));
    c.options = "dense_heads=3,router=knorm";
    CHECK(run_mode(&attn_mosa, &c, &m, &how, false, out, NULL, &err) == -1);
    CHECK(err.usage && strstr(err.text, "dense_heads is 3"));
    free_data(&m);
}

int main(void) {
    static const struct { int H, G, d; } shapes[] = {{4, 4, 16}, {6, 2, 32}, {3, 1, 24}};
    static const struct options options[] = {
        {.k = 1}, {.k = 12}, {.k = 500}, {.k = 70},
        {.k = 12, .include_first = true}, {.k = 1, .include_first = true},
        {.k = 12, .dense_heads = 1}, {.k = 12, .dense_heads = 2}, {.k = 12, .dense_heads = 3},
        {.k = 12, .sequence = true}, {.k = 500, .sequence = true, .include_first = true},
        {.k = 9, .sequence = true, .dense_heads = 1},
        {.k = 12, .knorm = true}, {.k = 12, .knorm = true, .dense_heads = 1},
    };
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (size_t i = 0; i < sizeof options / sizeof *options; i++) {
            test_options(shapes[s].H, shapes[s].G, shapes[s].d, shapes[s].G, &options[i]);
            test_options(shapes[s].H, shapes[s].G, shapes[s].d, shapes[s].H, &options[i]);
        }
    test_options(6, 2, 32, 2, &(struct options){.k = 12, .dense_heads = 6});
    test_memory_is_bounded();
    test_errors();
    return check_done("mosa");
}
