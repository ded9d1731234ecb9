/* test_landmark.c - landmark attention against its definition in double precision.
 *
 * The layer sees landmarks as tokens at the last place of every block; that a session puts them there is
 * tested end to end. */
#include "check.h"
#include "mode_case.h"

extern const struct attn_mode attn_landmark;

#define MAX_T 128

struct options {
    int block, topk;
    bool mean;
};

/* The definition's key of what stands for a block: q_t (rotated).R(key, pos), not divided by sqrt(d). */
static double mark_score(const struct mode_case *c, const struct mode_data *m, const struct options *o, int h,
                         int t, int block, int pos) {
    int d = c->d, g = h / (c->H / c->G);
    double q[KV_MAX_DIM], k[KV_MAX_DIM] = {0}, rq[KV_MAX_DIM], rk[KV_MAX_DIM], one[KV_MAX_DIM];
    head_of(m->q, c->H, d, t, h, q);
    if (!o->mean) head_of(m->k, c->G, d, block * o->block + o->block - 1, g, k);
    for (int i = 0; o->mean && i < o->block; i++) {
        head_of(m->k, c->G, d, block * o->block + i, g, one);
        for (int j = 0; j < d; j++) k[j] += one[j] / o->block;
    }
    rotate(&m->rope, d, q, t, rq);
    rotate(&m->rope, d, k, pos, rk);
    return dot_double(rq, rk, d);
}

/* The n of blocks [0, b) with the highest scores, in index order. */
static void choose(const double *scores, int b, int n, int *chosen) {
    int count = 0;
    for (int i = 0; i < b; i++) {
        int better = 0;
        for (int j = 0; j < b; j++) better += scores[j] > scores[i] || (scores[j] == scores[i] && j < i);
        if (better < n) chosen[count++] = i;
    }
}

static void define_token(const struct mode_case *c, const struct mode_data *m, const struct options *o, int h,
                         int t, double *out) {
    int d = c->d, B = o->block, b = t / B, n = o->topk < b ? o->topk : b, P = (b - n - 1) * B;
    int ordinary = o->mean ? B : B - 1, own = t - b * B + 1 < ordinary ? t - b * B + 1 : ordinary;
    double scores[MAX_T], outer[2 * MAX_T], inner[MAX_T], v[KV_MAX_DIM];
    int chosen[MAX_T], place[MAX_T];
    for (int i = 0; i < b; i++) scores[i] = mark_score(c, m, o, h, t, i, (i >= b - n ? i * B : P) + B - 1);
    choose(scores, b, n, chosen);
    for (int j = 0; j < n; j++) {
        place[j] = chosen[j] >= b - n ? P + (j + 1) * B : P + j * B;
        outer[j] = mark_score(c, m, o, h, t, chosen[j], place[j] + B - 1) / sqrt((double)d);
    }
    for (int i = 0; i < own; i++) outer[n + i] = rotated_score(c, m, h, t, t, b * B + i, b * B + i);
    softmax_double(outer, n + own);
    memset(out, 0, (size_t)d * sizeof *out);
    for (int i = 0; i < own; i++) {
        head_of(m->v, c->G, d, b * B + i, h / (c->H / c->G), v);
        for (int x = 0; x < d; x++) out[x] += outer[n + i] * v[x];
    }
    for (int j = 0; j < n; j++) {
        for (int i = 0; i < ordinary; i++)
            inner[i] = rotated_score(c, m, h, t, t, chosen[j] * B + i, place[j] + i);
        softmax_double(inner, ordinary);
        for (int i = 0; i < ordinary; i++) {
            head_of(m->v, c->G, d, chosen[j] * B + i, h / (c->H / c->G), v);
            for (int x = 0; x < d; x++) out[x] += outer[j] * inner[i] * v[x];
        }
    }
}

static void test_case(const struct mode_case *c, const struct options *o) {
    struct mode_data m = make_data(c, (uint64_t)(o->block * 10 + c->G));
    size_t n = (size_t)(c->T * c->H * c->d);
    double *want = calloc(n, sizeof *want);
    float *out = calloc(n, sizeof *out), *first = calloc(n, sizeof *first);
    struct error err;
    struct attn_stats stats;
    for (int t = 0; t < c->T; t++)
        for (int h = 0; h < c->H; h++) define_token(c, &m, o, h, t, want + (t * c->H + h) * c->d);
    const struct schedule schedules[] = {
        {c->T, c->T, 1, KV_F32, true},  {c->T, 1, 2, KV_F32, true},     {c->T, 7, 3, KV_F32, true},
        {c->T / 2, 5, 2, KV_F32, true}, {1, 1, 1, KV_F32, true},        {c->T - 1, o->block, 2, KV_F32, true},
    };
    for (size_t i = 0; i < sizeof schedules / sizeof *schedules; i++) {
        CHECK(run_mode(&attn_landmark, c, &m, &schedules[i], i % 2, out, &stats, &err) == 0);
        CHECK_NEAR(max_difference(out, want, n), 0, 2e-5);
        CHECK(stats.entries_cached == c->T + (o->mean ? c->T / o->block : 0));
    }
    /* Where all blocks are retrieved, rounding can't choose others. */
    for (size_t i = 0; i < 3 && o->topk * o->block >= c->T; i++) {
        const struct schedule how = {c->T / 2, 8, 2, lossy[i].type, false};
        CHECK(run_mode(&attn_landmark, c, &m, &how, false, out, NULL, &err) == 0);
        CHECK_NEAR(max_difference(out, want, n), 0, lossy[i].tolerance);
    }
    for (int threads = 1; threads <= 3; threads++) {
        const struct schedule how = {c->T - 5, 16, threads, KV_F16, false};
        CHECK(run_mode(&attn_landmark, c, &m, &how, false, threads == 1 ? first : out, NULL, &err) == 0);
        CHECK(threads == 1 || !memcmp(first, out, n * sizeof *out));
    }
    free_data(&m);
    free(want);
    free(out);
    free(first);
}

/* Reads per query: every landmark, and the retrieved blocks and its own, not the whole context. */
static void test_reads(void) {
    const struct mode_case c = {4, 2, 16, 8, 801, "block=8,topk=3", NULL, 0, 1};
    struct mode_data m = make_data(&c, 1);
    float *out = calloc((size_t)(c.T * c.H * c.d), sizeof *out);
    struct attn_stats stats;
    struct error err;
    const struct schedule how = {800, 64, 2, KV_F16, true};
    CHECK(run_mode(&attn_landmark, &c, &m, &how, false, out, &stats, &err) == 0);
    CHECK(stats.entries_attended == c.H * (100 + 3 * 7 + 1));
    free_data(&m);
    free(out);
}

/* The first layer's landmarks have one key and tie far from a query, though products of prompts and of single tokens
 * give it in last bits that differ. */
static void test_first_layer(void) {
    const struct options o = {8, 2, false};
    const struct mode_case c = {6, 2, 32, 8, 85, "block=8,topk=2", NULL, 0, 0};
    struct mode_data m = make_data(&c, 3);
    size_t n = (size_t)(c.T * c.H * c.d), row = (size_t)(c.G * c.d);
    double *want = calloc(n, sizeof *want);
    float *out = calloc(n, sizeof *out), *key = m.k + (size_t)(o.block - 1) * row;
    struct error err;
    for (int t = 2 * o.block - 1; t < c.T; t += o.block) memcpy(m.k + (size_t)t * row, key, row * sizeof *key);
    for (int t = 0; t < c.T; t++)
        for (int h = 0; h < c.H; h++) define_token(&c, &m, &o, h, t, want + (t * c.H + h) * c.d);
    for (int t = 2 * o.block - 1; t < c.T; t += o.block)
        for (size_t i = 0; i < row; i++) m.k[(size_t)t * row + i] *= 1 + 1e-6f * (float)((t + (int)i) % 3 - 1);
    const struct schedule schedules[] = {
        {c.T, c.T, 1, KV_F32, true}, {c.T, 1, 2, KV_F32, true}, {c.T / 2, 5, 2, KV_F32, true}, {30, 30, 2, KV_F32, true},
    };
    for (size_t i = 0; i < sizeof schedules / sizeof *schedules; i++) {
        CHECK(run_mode(&attn_landmark, &c, &m, &schedules[i], false, out, NULL, &err) == 0);
        CHECK_NEAR(max_difference(out, want, n), 0, 2e-5);
    }
    free_data(&m);
    free(want);
    free(out);
}

int main(void) {
    static const struct { int H, G, d; } shapes[] = {{4, 4, 16}, {6, 2, 32}, {3, 1, 24}};
    static const struct options options[] = {
        {8, 2, false}, {8, 1, false}, {8, 99, false}, {2, 3, false}, {50, 1, false}, {90, 4, false},
        {5, 4, false},
        {8, 2, true}, {8, 99, true}, {2, 3, true}, {50, 2, true},
    };
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (size_t i = 0; i < sizeof options / sizeof *options; i++) {
            char text[64];
            snprintf(text, sizeof text, "block=%d,topk=%d,key=%s", options[i].block, options[i].topk,
                     options[i].mean ? "mean" : "landmark");
            const struct mode_case c = {shapes[s].H, shapes[s].G, shapes[s].d, 8, 85, text, NULL, 0, 1};
            test_case(&c, &options[i]);
        }
    test_first_layer();
    test_reads();
    return check_done("landmark");
}
