/* Dense attention against its definition: types, shapes, batch splits, threads, eviction. */
#include <stdlib.h>
#include <string.h>

#include "../../attention/attention.h"
#include "../../kernels/attend.h"
#include "check.h"

extern const struct attn_mode attn_dense;

static uint64_t seed = 3;

static float uniform(void) { /* in [-1, 1) */
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (float)(int32_t)(seed >> 32) / 2147483648.0f;
}

static void *alloc(size_t bytes) {
    void *p = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!p) abort();
    return p;
}

struct problem {
    int T, H, G, d;
    struct rope rope;
    float *q, *k, *v;           /* [T, H, d], [T, G, d] */
    double *rotated;            /* [T, G, d] as stored */
    double *values;             /* [T, G, d] as stored */
    const int *dropped;         /* per KV head, how many of the first entries are evicted at drop_at */
    int drop_at;
};

static struct problem make_problem(int T, int H, int G, int d, enum kv_type type_k, enum kv_type type_v) {
    struct problem p = {.T = T, .H = H, .G = G, .d = d};
    p.rope = (struct rope){.n_pairs = d / 2, .interleaved = true, .magnitude = 1};
    for (int i = 0; i < d / 2; i++) p.rope.inv_freq[i] = powf(100, -2.0f * (float)i / (float)d);
    p.q = alloc(sizeof(float) * (size_t)(T * H * d));
    p.k = alloc(sizeof(float) * (size_t)(T * G * d));
    p.v = alloc(sizeof(float) * (size_t)(T * G * d));
    p.rotated = alloc(sizeof(double) * (size_t)(T * G * d));
    p.values = alloc(sizeof(double) * (size_t)(T * G * d));
    for (int i = 0; i < T * H * d; i++) p.q[i] = 3 * uniform();
    for (int i = 0; i < T * G * d; i++) {
        p.k[i] = 2 * uniform();
        p.v[i] = uniform() + 0.3f;
    }
    for (int t = 0; t < T; t++) {
        float table[2 * ROPE_MAX_PAIRS], x[KV_MAX_DIM];
        uint8_t row[4 * KV_MAX_DIM];
        rope_table(&p.rope, t, table);
        for (int g = 0; g < G; g++) {
            size_t at = (size_t)((t * G + g) * d);
            memcpy(x, p.k + at, sizeof(float) * (size_t)d);
            rope_rotate(&p.rope, table, x);
            kv_row_store(type_k, d, x, row);
            kv_row_load(type_k, d, row, x);
            for (int c = 0; c < d; c++) p.rotated[at + (size_t)c] = x[c];
            kv_row_store(type_v, d, p.v + at, row);
            kv_row_load(type_v, d, row, x);
            for (int c = 0; c < d; c++) p.values[at + (size_t)c] = x[c];
        }
    }
    return p;
}

static void free_problem(struct problem *p) {
    free(p->q);
    free(p->k);
    free(p->v);
    free(p->rotated);
    free(p->values);
}

/* Mean square error of row (t, h) of an output. */
static double row_error(const struct problem *p, const float *out, int t, int h) {
    int g = h / (p->H / p->G), d = p->d;
    float table[2 * ROPE_MAX_PAIRS], q[KV_MAX_DIM];
    double acc[KV_MAX_DIM] = {0}, sum = 0, error = 0;
    rope_table(&p->rope, t, table);
    memcpy(q, p->q + (t * p->H + h) * d, sizeof(float) * (size_t)d);
    rope_rotate(&p->rope, table, q);
    for (int i = p->dropped && t >= p->drop_at ? p->dropped[g] : 0; i <= t; i++) {
        const double *k = p->rotated + (i * p->G + g) * d, *v = p->values + (i * p->G + g) * d;
        double s = 0;
        for (int c = 0; c < d; c++) s += q[c] * k[c];
        double w = exp(s / sqrt(d));
        sum += w;
        for (int c = 0; c < d; c++) acc[c] += w * v[c];
    }
    for (int c = 0; c < d; c++) {
        double x = out[(t * p->H + h) * d + c] - acc[c] / sum;
        error += x * x;
    }
    return error / d;
}

static double rms_error(const struct problem *p, const float *out) {
    double error = 0;
    for (int t = 0; t < p->T; t++)
        for (int h = 0; h < p->H; h++) error += row_error(p, out, t, h);
    return sqrt(error / (p->T * p->H));
}

struct job {
    struct attn_layer *layer;
    struct attn_batch *batch;
};

static void forward(struct worker *w, void *arg) {
    struct job *job = arg;
    attn_dense.forward(job->layer, job->batch, w);
}

/* Runs the sequence in batches of `batch` tokens, the last `n_single` one at a time. */
static float *run(const struct problem *p, struct attn_shape *shape, int batch, int n_single, int threads) {
    float *out = alloc(sizeof(float) * (size_t)(p->T * p->H * p->d));
    float *q = alloc(sizeof(float) * (size_t)(batch * p->H * p->d));
    float *k = alloc(sizeof(float) * (size_t)(batch * p->G * p->d));
    float *tables = alloc(sizeof(float) * (size_t)(batch * p->d));
    shape->max_batch = batch;
    shape->n_threads = threads;
    struct attn_layer layer = {.mode = &attn_dense, .shape = shape};
    layer.scratch = alloc(attn_scratch_bytes(shape));
    struct team *team = team_create(threads, NULL);
    CHECK(team && !kv_init(&layer.cache, p->G, p->d, shape->type_k, shape->type_v, NULL));
    CHECK(!attn_dense.init(&layer, NULL, NULL));
    double attended = 0;
    for (int pos = 0, n; pos < p->T; pos += n) {
        bool single = pos >= p->T - n_single;
        int left = single ? p->T - pos : p->T - n_single - pos, most = single ? 1 : batch;
        n = left < most ? left : most;
        if (p->dropped && pos < p->drop_at && pos + n > p->drop_at) n = p->drop_at - pos;
        if (p->dropped && pos == p->drop_at) {
            for (int g = 0; g < p->G; g++) {
                int keep[1000];
                for (int i = p->dropped[g]; i < pos; i++) keep[i - p->dropped[g]] = i;
                kv_keep(&layer.cache, g, keep, pos - p->dropped[g]);
            }
        }
        memcpy(q, p->q + pos * p->H * p->d, sizeof(float) * (size_t)(n * p->H * p->d));
        memcpy(k, p->k + pos * p->G * p->d, sizeof(float) * (size_t)(n * p->G * p->d));
        for (int i = 0; i < n; i++) rope_table(&p->rope, pos + i, tables + i * p->d);
        struct attn_batch b = {.n = n, .pos = pos, .prefill = !single, .q = q, .k = k, .rope = tables};
        b.v = p->v + pos * p->G * p->d;
        b.out = out + pos * p->H * p->d;
        CHECK(!attn_dense.reserve(&layer, &b, NULL));
        if (single)
            for (int g = 0; g < p->G; g++) attended += (layer.cache.heads[g].n + 1) * (p->H / p->G);
        team_run(team, forward, &(struct job){&layer, &b});
    }
    struct attn_stats stats;
    attn_dense.stats(&layer, &stats);
    CHECK(stats.entries_attended == attended && stats.bytes == kv_bytes(&layer.cache));
    CHECK(p->dropped || stats.entries_cached == p->T);
    attn_dense.free(&layer);
    kv_free(&layer.cache);
    free(layer.scratch);
    team_free(team);
    free(q);
    free(k);
    free(tables);
    return out;
}

static double difference(const float *a, const float *b, int n) {
    double worst = 0;
    for (int i = 0; i < n; i++) worst = worse(worst, fabs(a[i] - b[i]));
    return worst;
}

/* One shape and type: the definition, batch splits, thread counts. */
static void test_case(const struct problem *p, enum kv_type type_k, enum kv_type type_v, bool exact) {
    const struct kernels *kernels = kernels_select(NULL, NULL);
    struct attn_shape shape = {
        .n_head = p->H, .n_head_kv = p->G, .head_dim = p->d, .scale = 1 / sqrtf((float)p->d), .exact = exact,
        .type_k = type_k, .type_v = type_v, .rope = &p->rope, .kernels = kernels,
        .attend = attend_select(kernels_isa(kernels), exact),
    };
    int n = p->T * p->H * p->d, failed = checks_failed;
    double tol = exact ? 1e-5 : 0.02;
    float *one = run(p, &shape, 512, 5, 1);
    CHECK_NEAR(rms_error(p, one), 0, tol);
    static const int batches[] = {1, 7, 64, 512};
    for (size_t i = 0; i < sizeof batches / sizeof *batches; i++) {
        float *first = run(p, &shape, batches[i], 5, 1);
        CHECK_NEAR(difference(first, one, n), 0, exact ? 5e-5 : 0.3);
        for (int threads = 2; threads <= 3; threads++) {
            float *other = run(p, &shape, batches[i], 5, threads);
            CHECK(!memcmp(first, other, sizeof *first * (size_t)n));
            free(other);
        }
        free(first);
    }
    free(one);
    if (checks_failed > failed)
        printf("  in T %d, H %d, G %d, d %d, types %d %d, exact %d\n", p->T, p->H, p->G, p->d, type_k,
               type_v, exact);
}

int main(void) {
    static const struct shape { int T, H, G, d; enum kv_type k, v; } cases[] = {
        {300, 9, 3, 64, KV_F32, KV_F32}, {300, 9, 3, 64, KV_F16, KV_F16}, {150, 9, 3, 64, KV_Q8_0, KV_Q8_0},
        {150, 4, 4, 32, KV_F16, KV_Q4_0}, {200, 8, 1, 80, KV_F16, KV_F16}, {70, 32, 1, 16, KV_F32, KV_F32},
        {100, 2, 1, 128, KV_Q4_0, KV_F16}, {1300, 2, 2, 16, KV_F16, KV_F16},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct shape *s = &cases[i];
        struct problem p = make_problem(s->T, s->H, s->G, s->d, s->k, s->v);
        test_case(&p, s->k, s->v, true);
        test_case(&p, s->k, s->v, false);
        free_problem(&p);
    }
    /* heads that have lost different numbers of entries */
    struct problem p = make_problem(260, 6, 3, 32, KV_F32, KV_F32);
    p.dropped = (int[]){0, 77, 150};
    p.drop_at = 192;
    test_case(&p, KV_F32, KV_F32, true);
    free_problem(&p);
    return check_done("test_dense");
}
