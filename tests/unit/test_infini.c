/* test_infini.c - Infini-attention against its definition in double precision. */
#include "check.h"
#include "mode_case.h"

extern const struct attn_mode attn_infini;

static double feature(double x) { return x > 0 ? x + 1 : exp(x); }

/* out [d] = s(x)M / (s(x).z + 1e-6) */
static void recall(const double *M, const double *z, const double *x, int d, double *out) {
    double norm = 1e-6;
    memset(out, 0, (size_t)d * sizeof *out);
    for (int i = 0; i < d; i++) {
        norm += feature(x[i]) * z[i];
        for (int j = 0; j < d; j++) out[j] += feature(x[i]) * M[i * d + j];
    }
    for (int j = 0; j < d; j++) out[j] /= norm;
}

/* The definition for one query head, every token in turn. */
static void define_head(const struct mode_case *c, const struct mode_data *m, int h, int segment, bool delta,
                        double gate, double *out) {
    int d = c->d, g = h / (c->H / c->G);
    double *M = calloc((size_t)(d * d), sizeof *M), *old = calloc((size_t)(d * d), sizeof *old);
    double z[KV_MAX_DIM] = {0}, *p = calloc((size_t)segment, sizeof *p);
    for (int t = 0; t < c->T; t++) {
        int begin = t / segment * segment;
        double q[KV_MAX_DIM], memory[KV_MAX_DIM], local[KV_MAX_DIM] = {0}, v[KV_MAX_DIM];
        head_of(m->q, c->H, d, t, h, q);
        recall(M, z, q, d, memory);
        for (int i = begin; i <= t; i++) p[i - begin] = rotated_score(c, m, h, t, t, i, i);
        softmax_double(p, t - begin + 1);
        for (int i = begin; i <= t; i++) {
            head_of(m->v, c->G, d, i, g, v);
            for (int j = 0; j < d; j++) local[j] += p[i - begin] * v[j];
        }
        for (int j = 0; j < d; j++) out[(t * c->H + h) * d + j] = gate * memory[j] + (1 - gate) * local[j];
        if ((t + 1) % segment) continue;
        double added_z[KV_MAX_DIM] = {0};
        memcpy(old, M, (size_t)(d * d) * sizeof *M);
        for (int i = begin; i <= t; i++) {
            double k[KV_MAX_DIM], known[KV_MAX_DIM];
            head_of(m->k, c->G, d, i, g, k);
            head_of(m->v, c->G, d, i, g, v);
            recall(old, z, k, d, known);
            for (int a = 0; a < d; a++) {
                added_z[a] += feature(k[a]);
                for (int j = 0; j < d; j++) M[a * d + j] += feature(k[a]) * (v[j] - (delta ? known[j] : 0));
            }
        }
        for (int a = 0; a < d; a++) z[a] += added_z[a];
    }
    free(M);
    free(old);
    free(p);
}

static void test_case(const struct mode_case *c, int segment, bool delta, double constant) {
    struct mode_data m = make_data(c, (uint64_t)(segment + c->G));
    size_t n = (size_t)(c->T * c->H * c->d);
    double *want = calloc(n, sizeof *want);
    float *out = calloc(n, sizeof *out), *first = calloc(n, sizeof *first);
    struct error err;
    struct attn_stats stats;
    for (int h = 0; h < c->H; h++) {
        double gate = c->tensor ? 1 / (1 + exp(-(double)m.parameter[h])) : constant;
        define_head(c, &m, h, segment, delta, gate, want);
    }
    const struct schedule schedules[] = {
        {c->T, c->T, 1, KV_F32, true},   {c->T, 1, 2, KV_F32, true},      {c->T, 7, 3, KV_F32, true},
        {c->T / 2, 5, 2, KV_F32, true},  {1, 1, 1, KV_F32, true},         {c->T - 1, 64, 2, KV_F32, true},
    };
    for (size_t i = 0; i < sizeof schedules / sizeof *schedules; i++) {
        CHECK(run_mode(&attn_infini, c, &m, &schedules[i], i % 2, out, &stats, &err) == 0);
        CHECK_NEAR(max_difference(out, want, n), 0, 2e-5);
        CHECK(stats.entries_cached == c->T % segment);
    }
    for (size_t i = 0; i < 3; i++) {
        const struct schedule how = {c->T / 2, 8, 2, lossy[i].type, false};
        CHECK(run_mode(&attn_infini, c, &m, &how, false, out, NULL, &err) == 0);
        CHECK_NEAR(max_difference(out, want, n), 0, lossy[i].tolerance);
    }
    for (int threads = 1; threads <= 3; threads++) {
        const struct schedule how = {c->T - 5, 16, threads, KV_F16, false};
        CHECK(run_mode(&attn_infini, c, &m, &how, false, threads == 1 ? first : out, NULL, &err) == 0);
        CHECK(threads == 1 || !memcmp(first, out, n * sizeof *out));
    }
    free_data(&m);
    free(want);
    free(out);
    free(first);
}

static void test_memory_is_constant(void) {
    struct attn_stats short_text, long_text;
    struct error err;
    for (int i = 0; i < 2; i++) {
        const struct mode_case c = {4, 2, 16, 8, i ? 5000 : 100, "segment=32,gate=0.5", NULL, 0, 0};
        struct mode_data m = make_data(&c, 1);
        float *out = calloc((size_t)(c.T * c.H * c.d), sizeof *out);
        const struct schedule how = {c.T, 64, 2, KV_F16, true};
        CHECK(run_mode(&attn_infini, &c, &m, &how, false, out, i ? &long_text : &short_text, &err) == 0);
        free_data(&m);
        free(out);
    }
    CHECK(short_text.bytes == long_text.bytes);
}

static void test_missing_gate(void) {
    const struct mode_case c = {2, 2, 8, 8, 4, "segment=4", NULL, 0, 0};
    struct mode_data m = make_data(&c, 1);
    float out[4 * 2 * 8];
    struct error err = {0};
    const struct schedule how = {4, 4, 1, KV_F32, true};
    CHECK(run_mode(&attn_infini, &c, &m, &how, false, out, NULL, &err) == -1);
    CHECK(strstr(err.text, "blk.0.attn_infini_gate.weight") && strstr(err.text, "infini:gate="));
    free_data(&m);
}

int main(void) {
    static const struct { int H, G, d; } shapes[] = {{4, 4, 16}, {6, 2, 32}, {3, 1, 24}, {4, 2, 64}};
    static const int segments[] = {1, 5, 16, 200};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (size_t i = 0; i < sizeof segments / sizeof *segments; i++)
            for (int delta = 0; delta < 2; delta++) {
                char options[64];
                snprintf(options, sizeof options, "segment=%d,delta=%d,gate=%s", segments[i], delta,
                         i % 2 ? "0.25" : "file");
                const struct mode_case c = {
                    shapes[s].H, shapes[s].G, shapes[s].d, 8, 61, options,
                    i % 2 ? NULL : "blk.0.attn_infini_gate.weight", 0, 0,
                };
                test_case(&c, segments[i], delta, 0.25);
            }
    test_memory_is_constant();
    test_missing_gate();
    return check_done("infini");
}
