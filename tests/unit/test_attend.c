/* Attention's inner loops, every instruction set and type against double precision. */
#include <stdlib.h>
#include <string.h>

#include "../../kernels/attend.h"
#include "../../kernels/kernels.h"
#include "check.h"

static uint64_t seed = 1;

static float uniform(void) { /* in [-1, 1) */
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (float)(int32_t)(seed >> 32) / 2147483648.0f;
}

static float normal(void) {
    float sum = 0;
    for (int i = 0; i < 6; i++) sum += uniform();
    return sum / 1.41421356f;
}

static void *alloc(size_t bytes) {
    void *p = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!p) abort();
    return p;
}

/* One KV head with n entries, m query rows, and what a routine should make of them. */
struct problem {
    int d, n, m;
    struct kv_view kv;
    uint8_t *k, *v;
    double *k64, *v64; /* [n, d] as stored */
    float *q;          /* [m, d] */
    float *states;     /* [m, ATTEND_STATE(d)] */
    struct attend_row *rows;
};

static struct problem make_problem(enum kv_type type_k, enum kv_type type_v, int d, int n, int m) {
    struct problem p = {.d = d, .n = n, .m = m};
    size_t k_row = kv_row_bytes(type_k, d), v_row = kv_row_bytes(type_v, d);
    p.k = malloc(k_row * (size_t)n);
    p.v = malloc(v_row * (size_t)n);
    p.k64 = alloc(sizeof(double) * (size_t)(n * d));
    p.v64 = alloc(sizeof(double) * (size_t)(n * d));
    p.q = alloc(sizeof(float) * (size_t)(m * d));
    p.states = alloc(sizeof(float) * (size_t)(m * ATTEND_STATE(d)));
    p.rows = malloc(sizeof *p.rows * (size_t)m);
    if (!p.k || !p.v || !p.rows) abort();
    for (int i = 0; i < n; i++) {
        float x[KV_MAX_DIM] = {0};
        for (int c = 0; c < d; c++) x[c] = normal();
        x[0] += 8; /* real keys have channels that stand out */
        kv_row_store(type_k, d, x, p.k + k_row * (size_t)i);
        kv_row_load(type_k, d, p.k + k_row * (size_t)i, x);
        for (int c = 0; c < d; c++) p.k64[i * d + c] = x[c];
        for (int c = 0; c < d; c++) x[c] = normal() + 0.5f;
        kv_row_store(type_v, d, x, p.v + v_row * (size_t)i);
        kv_row_load(type_v, d, p.v + v_row * (size_t)i, x);
        for (int c = 0; c < d; c++) p.v64[i * d + c] = x[c];
    }
    for (int i = 0; i < m * d; i++) p.q[i] = 3 * normal() / sqrtf((float)d);
    for (int r = 0; r < m; r++) {
        float *state = p.states + r * ATTEND_STATE(d);
        p.rows[r] = (struct attend_row){.q = p.q + r * d, .state = state, .limit = n};
        attend_init(p.rows[r].state, d);
    }
    p.kv = (struct kv_view){.d = d, .type_k = type_k, .type_v = type_v, .k_row_bytes = k_row,
                            .v_row_bytes = v_row, .k = p.k, .v = p.v};
    return p;
}

static void free_problem(struct problem *p) {
    free(p->k);
    free(p->v);
    free(p->k64);
    free(p->v64);
    free(p->q);
    free(p->states);
    free(p->rows);
}

static double score(const struct problem *p, int r, int i) {
    double s = 0;
    for (int c = 0; c < p->d; c++) s += p->q[r * p->d + c] * p->k64[i * p->d + c];
    return s;
}

/* Mean square of the difference from softmax attention over the entries i with
 * sees[i]; the values' own is about 1. */
static double row_error(const struct problem *p, int r, const float *out, const char *sees) {
    double sum = 0, acc[KV_MAX_DIM] = {0}, error = 0;
    for (int i = 0; i < p->n; i++) {
        if (!sees[i]) continue;
        double w = exp(score(p, r, i));
        sum += w;
        for (int c = 0; c < p->d; c++) acc[c] += w * p->v64[i * p->d + c];
    }
    for (int c = 0; c < p->d; c++) {
        double expected = sum > 0 ? acc[c] / sum : 0, x = out[c] - expected;
        error += x * x;
    }
    return error / p->d;
}

/* Root mean square error of all rows; row r sees entries [begin, end) below its limit. */
static double rows_error(const struct problem *p, int begin, int end) {
    double error = 0;
    char *sees = calloc((size_t)p->n, 1);
    float out[KV_MAX_DIM];
    if (!sees) abort();
    for (int r = 0; r < p->m; r++) {
        for (int i = begin; i < end; i++) sees[i] = i < p->rows[r].limit;
        attend_finish(p->rows[r].state, p->d, out);
        error += row_error(p, r, out, sees);
    }
    free(sees);
    return sqrt(error / p->m);
}

static void init_states(struct problem *p) {
    for (int r = 0; r < p->m; r++) attend_init(p->rows[r].state, p->d);
}

/* Half of the rows are cut off at different places near the end, one sees nothing. */
static void set_limits(struct problem *p) {
    for (int r = 0; r < p->m; r += 2) p->rows[r].limit = p->n - r % 70 > 0 ? p->n - r % 70 : 0;
    if (p->m > 2) p->rows[1].limit = 0;
}

static void test_range(const struct attend_kernels *a, struct problem *p, double tol) {
    int middle = p->n / 3;
    init_states(p);
    a->range(&p->kv, middle, p->n, p->rows, p->m);
    CHECK_NEAR(rows_error(p, middle, p->n), 0, tol);
    a->range(&p->kv, 0, middle, p->rows, p->m);
    CHECK_NEAR(rows_error(p, 0, p->n), 0, tol);
}

static void test_scores(const struct attend_kernels *a, struct problem *p, double tol) {
    int begin = p->n / 5, end = p->n, stride = end - begin + 3;
    float *scores = alloc(sizeof *scores * (size_t)(p->m * stride));
    a->scores(&p->kv, begin, end, p->q, (size_t)p->d, p->m, scores, (size_t)stride);
    double worst = 0;
    for (int r = 0; r < p->m; r++)
        for (int i = begin; i < end; i++) {
            double error = fabs(scores[r * stride + i - begin] - score(p, r, i));
            worst = worse(worst, error);
        }
    CHECK_NEAR(worst, 0, tol);
    free(scores);
}

static void test_add_softmax(const struct attend_kernels *a) {
    for (int n = 1; n <= 70; n++) {
        float scores[70], sums[71];
        double expected[70], total = 0, worst = 0;
        for (int i = 0; i < n; i++) {
            scores[i] = 20 * uniform();
            total += expected[i] = exp((double)scores[i]);
            sums[i] = (float)i;
        }
        sums[n] = 7; /* not to be touched */
        a->add_softmax(scores, n, 0.5f, sums);
        for (int i = 0; i < n; i++) worst = worse(worst, fabs((double)sums[i] - i - expected[i] / total / 2));
        CHECK_NEAR(worst, 0, 1e-5);
        CHECK(sums[n] == 7);
    }
}

/* Entries in descending order, of which all rows' scores are asked and with which the first row attends. */
static void test_list(const struct attend_kernels *a, struct problem *p, double tol, double score_tol) {
    int n = 0, stride = p->n + 3, *index = malloc(sizeof *index * (size_t)p->n);
    float *scores = alloc(sizeof *scores * (size_t)(p->m * stride)), out[KV_MAX_DIM];
    char *sees = calloc((size_t)p->n, 1);
    double worst = 0;
    if (!index || !sees) abort();
    for (int i = p->n - 1; i >= 0; i -= 1 + i % 3) {
        index[n++] = i;
        sees[i] = 1;
    }
    a->score_list(&p->kv, index, n, p->q, (size_t)p->d, p->m, scores, (size_t)stride);
    for (int r = 0; r < p->m; r++)
        for (int i = 0; i < n; i++) {
            double error = fabs(scores[r * stride + i] - score(p, r, index[i]));
            worst = worse(worst, error);
        }
    CHECK_NEAR(worst, 0, score_tol);
    attend_init(p->rows[0].state, p->d);
    a->list(&p->kv, index, scores, n, p->rows[0].state);
    attend_finish(p->rows[0].state, p->d, out);
    CHECK_NEAR(sqrt(row_error(p, 0, out, sees)), 0, tol);
    free(scores);
    free(index);
    free(sees);
}

static void test_rows(const struct attend_kernels *a, struct problem *p, double tol) {
    size_t bytes = a->block_bytes(p->d);
    int n_blocks = (p->n + ATTEND_BLOCK - 1) / ATTEND_BLOCK;
    char *blocks = alloc(bytes * (size_t)n_blocks);
    memset(blocks, 0xff, bytes * (size_t)n_blocks); /* NaN where a kernel reads what pack() didn't write */
    CHECK(bytes % 64 == 0);
    for (int b = 0; b < n_blocks; b++) {
        int n = p->n - b * ATTEND_BLOCK;
        a->pack(&p->kv, b * ATTEND_BLOCK, n < ATTEND_BLOCK ? n : ATTEND_BLOCK, blocks + bytes * (size_t)b);
    }
    init_states(p);
    a->rows(p->d, blocks, 0, p->n, p->rows, p->m);
    CHECK_NEAR(rows_error(p, 0, p->n), 0, tol);

    /* in two pieces, the other order */
    int half = n_blocks / 2, middle = half * ATTEND_BLOCK;
    init_states(p);
    a->rows(p->d, blocks + bytes * (size_t)half, middle, p->n - middle, p->rows, p->m);
    a->rows(p->d, blocks, 0, middle, p->rows, p->m);
    CHECK_NEAR(rows_error(p, 0, p->n), 0, tol);
    free(blocks);
}

static void test_merge(struct problem *p) {
    int d = p->d;
    float *other = alloc(sizeof *other * (size_t)ATTEND_STATE(d));
    const struct attend_kernels *a = attend_select("c", true);
    struct attend_row row = {.q = p->q, .state = other, .limit = p->n};
    attend_init(p->rows[0].state, d);
    attend_init(other, d);
    attend_merge(p->rows[0].state, other, d); /* nothing and nothing */
    p->rows[0].limit = p->n;
    p->m = 1;
    CHECK_NEAR(rows_error(p, 0, 0), 0, 0);
    a->range(&p->kv, 0, p->n / 2, p->rows, 1);
    attend_merge(p->rows[0].state, other, d);
    CHECK_NEAR(rows_error(p, 0, p->n / 2), 0, 1e-5);
    a->range(&p->kv, p->n / 2, p->n, &row, 1);
    attend_merge(p->rows[0].state, other, d);
    CHECK_NEAR(rows_error(p, 0, p->n), 0, 1e-5);
    free(other);
}

static void test_conversions(const struct attend_kernels *a, enum kv_type type, int d) {
    float x[KV_MAX_DIM], expected[KV_MAX_DIM], y[KV_MAX_DIM];
    uint8_t row[KV_MAX_DIM * 4 + 1], wanted[KV_MAX_DIM * 4 + 1];
    size_t bytes = kv_row_bytes(type, d);
    for (int round = 0; round < 4; round++) {
        for (int c = 0; c < d; c++) x[c] = round == 3 ? 0 : normal() * powf(10, (float)round - 1);
        memset(row, 0x55, sizeof row);
        memset(wanted, 0x55, sizeof wanted);
        kv_row_store(type, d, x, wanted);
        a->store(type, d, x, row);
        CHECK(!memcmp(row, wanted, sizeof row));
        CHECK(wanted[bytes] == 0x55);
        kv_row_load(type, d, row, expected);
        a->load(type, d, row, y);
        CHECK(!memcmp(y, expected, sizeof *y * (size_t)d));
    }
}

/* The error of scores: fast tables round queries to 8 bits or, for q8_0 with AVX2, to 16. */
static double score_tolerance(const struct attend_kernels *a, enum kv_type type_k, bool exact) {
    if (exact) return 1e-4;
    return type_k == KV_Q8_0 && !strcmp(a->isa, "avx2") ? 0.01 : 0.2;
}

static void test_table(const struct attend_kernels *a, bool exact) {
    test_add_softmax(a);
    static const enum kv_type types[][2] = {
        {KV_F32, KV_F32}, {KV_F16, KV_F16}, {KV_Q8_0, KV_Q8_0},
        {KV_Q4_0, KV_Q4_0}, {KV_Q8_0, KV_F16}, {KV_F16, KV_Q4_0},
    };
    static const int dims[] = {8, 24, 32, 64, 80, 256};
    static const int shapes[][2] = {{1, 1}, {64, 3}, {65, 7}, {203, 50}, {130, 97}}; /* n, m */
    double tol = exact ? 1e-5 : 0.05;
    for (size_t t = 0; t < sizeof types / sizeof *types; t++)
        for (size_t i = 0; i < sizeof dims / sizeof *dims; i++) {
            test_conversions(a, types[t][0], dims[i]);
            for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
                const double score_tol = score_tolerance(a, types[t][0], exact);
                int failed = checks_failed, n = shapes[s][0], m = shapes[s][1];
                struct problem p = make_problem(types[t][0], types[t][1], dims[i], n, m);
                test_rows(a, &p, tol);
                test_range(a, &p, tol);
                test_scores(a, &p, score_tol);
                set_limits(&p);
                test_rows(a, &p, tol);
                test_range(a, &p, tol);
                test_list(a, &p, tol, score_tol);
                free_problem(&p);
                if (checks_failed > failed)
                    printf("  in %s %s, types %d %d, d %d, %d entries, %d rows\n", a->isa,
                           exact ? "exact" : "fast", types[t][0], types[t][1], dims[i], n, m);
            }
        }
}

int main(void) {
    static const char *const isas[] = {"c", "avx2", "avx512", "avx512vnni", "amx", "neon"};
    const struct attend_kernels *done[12] = {0};
    int n_done = 0;
    for (size_t i = 0; i < sizeof isas / sizeof *isas; i++) {
        if (!kernels_select(isas[i], NULL)) continue;
        for (int exact = 0; exact < 2; exact++) {
            const struct attend_kernels *a = attend_select(isas[i], exact);
            bool again = false;
            for (int j = 0; j < n_done; j++) again |= done[j] == a;
            if (again) continue;
            done[n_done++] = a;
            /* tables without 8-bit arithmetic serve both; hold them to the tighter bound */
            test_table(a, exact || attend_select(isas[i], true) == a);
        }
    }
    struct problem p = make_problem(KV_F32, KV_F32, 64, 100, 3);
    test_merge(&p);
    free_problem(&p);
    return check_done("test_attend");
}
