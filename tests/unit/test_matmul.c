/* Matrix products: every instruction set against plain C and against the
 * dequantised weights in double precision, on odd sizes, and by any number of
 * threads. */
#include <stdlib.h>
#include <string.h>

#include "../../kernels/kernels.h"
#include "check.h"

static const char *const isas[] = {"c", "avx2", "avx512", "avx512vnni", "amx", "neon", "neondot"};

static const enum tensor_type types[] = {TENSOR_F32,  TENSOR_F16,  TENSOR_BF16, TENSOR_Q4_0,
                                         TENSOR_Q4_1, TENSOR_Q5_0, TENSOR_Q5_1, TENSOR_Q8_0,
                                         TENSOR_Q4_K, TENSOR_Q5_K, TENSOR_Q6_K};

static uint32_t random_state = 1;

static uint32_t random_u32(void) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 17;
    return random_state ^= random_state << 5;
}

static float random_float(void) { return (float)random_u32() / 0x1p31f - 1; }

static void *allocate(size_t bytes) {
    void *p = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!p) abort();
    return p;
}

static void put_f16(uint8_t *p, float x) {
    uint16_t h = f32_to_f16(x);
    memcpy(p, &h, sizeof h);
}

/* Random bytes, with ordinary numbers where a block has its scales. The rows
 * end where the allocation does, so that valgrind and ASan see a read too far. */
static uint8_t *random_weight(struct weight *w, enum tensor_type type, int rows, int cols) {
    int elements;
    size_t bytes;
    if (!tensor_type_block(type, &elements, &bytes)) abort();
    *w = (struct weight){
        .type = type, .rows = rows, .cols = cols, .row_bytes = (size_t)(cols / elements) * bytes};
    size_t total = w->row_bytes * (size_t)rows;
    uint8_t *data = malloc(total);
    if (!data) abort();
    for (size_t i = 0; i < total; i++) data[i] = (uint8_t)random_u32();
    for (uint8_t *p = data; p < data + total; p += bytes) {
        float x = random_float();
        if (type == TENSOR_F32) memcpy(p, &x, sizeof x);
        else if (type == TENSOR_BF16) memcpy(p, (uint8_t *)&x + 2, 2);
        else if (type == TENSOR_Q6_K) put_f16(p + 208, x / 4096);
        else put_f16(p, type == TENSOR_F16 ? x : x / 16);
        if (type == TENSOR_Q4_1 || type == TENSOR_Q5_1) put_f16(p + 2, random_float());
        if (type == TENSOR_Q4_K || type == TENSOR_Q5_K) put_f16(p + 2, random_float() / 16);
    }
    w->data = data;
    return data;
}

struct job {
    const struct kernels *k;
    struct product products[2];
    int n_products;
    struct acts acts;
    void *scratch;
};

static void run_job(struct worker *w, void *arg) {
    struct job *job = arg;
    acts_prepare(w, job->k, &job->acts);
    matmul(w, job->k, job->products, job->n_products, &job->acts, job->scratch);
}

/* y[n, rows] of the products, one after the other; they need only say what is special about them. */
static float *run_products(const struct kernels *k, int threads, const struct product *products, int n_products,
                           const float *x, int n, bool precise) {
    const struct weight *w = products[0].w;
    size_t stride = (size_t)w->rows + 3, size = (size_t)n * stride;
    float *y = malloc((size_t)n_products * size * sizeof *y);
    struct team *team = team_create(threads, NULL);
    if (!y || !team) abort();
    for (size_t i = 0; i < (size_t)n_products * size; i++) y[i] = 0.5f;
    struct job job = {.k = k, .n_products = n_products};
    for (int i = 0; i < n_products; i++) {
        job.products[i] = products[i];
        job.products[i].y = y + (size_t)i * size;
        job.products[i].y_stride = stride;
    }
    job.acts = (struct acts){n, w->cols, x, allocate(acts_bytes(k, n, w->cols)), precise};
    job.scratch = allocate((size_t)threads * matmul_scratch_bytes(n, w->cols));
    team_run(team, run_job, &job);
    for (int i = 0; i < n_products * n; i++) /* nothing beyond the rows is written */
        for (size_t j = stride - 3; j < stride; j++) CHECK(y[(size_t)i * stride + j] == 0.5f);
    team_free(team);
    free(job.acts.q8);
    free(job.scratch);
    return y;
}

static float *run(const struct kernels *k, int threads, const struct weight *w, int n_weights, const float *x,
                  int n, bool add, bool precise) {
    struct product products[2] = {{.w = &w[0], .add = add}, {.w = &w[1], .add = add}};
    return run_products(k, threads, products, n_weights, x, n, precise);
}

/* Largest difference between two results, relative to the size of the sums. */
static double difference(const float *a, const float *b, int n, int rows, double scale) {
    double worst = 0;
    for (int i = 0; i < n; i++)
        for (int r = 0; r < rows; r++) {
            double d = fabs((double)a[i * (rows + 3) + r] - (double)b[i * (rows + 3) + r]) / scale;
            worst = worse(worst, d);
        }
    return worst;
}

/* The result in double precision from the dequantised weight, and in *scale the
 * root mean square of the results. */
static float *exact(const struct kernels *k, const struct weight *w, const float *x, int n, double *scale) {
    float *y = malloc((size_t)n * ((size_t)w->rows + 3) * sizeof *y),
          *row = malloc((size_t)w->cols * sizeof *row);
    if (!y || !row) abort();
    double squares = 0;
    for (int r = 0; r < w->rows; r++) {
        weight_row(k, w, r, row);
        for (int i = 0; i < n; i++) {
            double sum = 0;
            for (int c = 0; c < w->cols; c++) sum += (double)row[c] * (double)x[i * w->cols + c];
            y[i * (w->rows + 3) + r] = (float)sum;
            squares += sum * sum;
        }
    }
    free(row);
    *scale = sqrt(squares / (n * w->rows)) + 1e-30;
    return y;
}

static void check_shape(const struct kernels *c, const struct kernels *k, enum tensor_type type, int rows,
                        int n, int cols) {
    struct weight w;
    uint8_t *data = random_weight(&w, type, rows, cols);
    float *x = malloc((size_t)n * (size_t)cols * sizeof *x);
    if (!x) abort();
    for (int i = 0; i < n * cols; i++) x[i] = random_float();
    double scale;
    float *truth = exact(c, &w, x, n, &scale);
    float *plain = run(c, 1, &w, 1, x, n, false, false), *got = run(k, 1, &w, 1, x, n, false, false);
    bool quantised = type != TENSOR_F32 && type != TENSOR_F16 && type != TENSOR_BF16;
    double from_plain = difference(got, plain, n, rows, scale),
           from_truth = difference(got, truth, n, rows, scale);
    bool tiles = quantised && acts_heed_precise(k, n); /* other activations than the plain twin has */
    double plain_limit = tiles ? 0.05 : 1e-5, truth_limit = tiles ? 0.03 : quantised ? 0.05 : 1e-5;
    if (from_plain > plain_limit || from_truth > truth_limit)
        printf("%s %s: %d x %d, n = %d:\n", kernels_isa(k), tensor_type_name(type), rows, cols, n);
    CHECK_NEAR(from_plain, 0, plain_limit);
    CHECK_NEAR(from_truth, 0, truth_limit);
    if (tiles) {
        float *precise = run(k, 1, &w, 1, x, n, false, true);
        CHECK_NEAR(difference(precise, truth, n, rows, scale), 0, 1e-4);
        free(precise);
    }

    float *added = run(k, 2, &w, 1, x, n, true, false);
    for (int i = 0; i < n; i++)
        for (int r = 0; r < rows; r++) added[i * (rows + 3) + r] -= 0.5f;
    CHECK_NEAR(difference(added, got, n, rows, scale), 0, 1e-5);
    free(data), free(x), free(truth), free(plain), free(got), free(added);
}

static void check_threads(const struct kernels *k, enum tensor_type type, int n) {
    struct weight w[2];
    uint8_t *data0 = random_weight(&w[0], type, 100, 768), *data1 = random_weight(&w[1], type, 100, 768);
    float *x = malloc((size_t)n * 768 * sizeof *x);
    if (!x) abort();
    for (int i = 0; i < n * 768; i++) x[i] = random_float();
    float *one = run(k, 1, w, 2, x, n, false, false);
    for (int threads = 2; threads <= 3; threads++) {
        float *more = run(k, threads, w, 2, x, n, false, false);
        CHECK(!memcmp(one, more, (size_t)n * 2 * 103 * sizeof *one));
        free(more);
    }
    float *alone = run(k, 2, &w[1], 1, x, n, false, false);
    CHECK(!memcmp(one + n * 103, alone, (size_t)n * 103 * sizeof *one));
    free(data0), free(data1), free(x), free(one), free(alone);
}

/* SwiGLU at once gives what the two products and silu_mul() give, bit for bit; with more weight rows than wait for
 * their gates at a time. */
static void check_gated(const struct kernels *k, enum tensor_type type, int n) {
    enum { ROWS = 1100, COLS = 256, SIZE = ROWS + 3 };
    struct weight w[2];
    uint8_t *gate = random_weight(&w[0], type, ROWS, COLS), *up = random_weight(&w[1], type, ROWS, COLS);
    float *x = malloc((size_t)n * COLS * sizeof *x);
    if (!x) abort();
    for (int i = 0; i < n * COLS; i++) x[i] = random_float();
    float *apart = run(k, 1, w, 2, x, n, false, false);
    for (int i = 0; i < n; i++) silu_mul(k, apart + i * SIZE, apart + i * SIZE, apart + (n + i) * SIZE, ROWS);
    for (int threads = 1; threads <= 3; threads++) {
        const struct product gated = {.w = &w[1], .gate = &w[0]};
        float *at_once = run_products(k, threads, &gated, 1, x, n, false);
        for (int i = 0; i < n; i++) CHECK(!memcmp(at_once + i * SIZE, apart + i * SIZE, ROWS * sizeof *apart));
        free(at_once);
    }
    free(gate), free(up), free(x), free(apart);
}

/* A coarse product of precise activations is as if they weren't; of those that a table knows. */
static void check_coarse(const struct kernels *k, enum tensor_type type, int n) {
    if (!acts_heed_precise(k, n)) return;
    struct weight w;
    uint8_t *data = random_weight(&w, type, 70, 768);
    float *x = malloc((size_t)n * 768 * sizeof *x);
    if (!x) abort();
    for (int i = 0; i < n * 768; i++) x[i] = random_float();
    const struct product coarse = {.w = &w, .coarse = true}, fine = {.w = &w};
    float *a = run_products(k, 2, &coarse, 1, x, n, true), *b = run_products(k, 2, &fine, 1, x, n, false);
    CHECK(!memcmp(a, b, (size_t)n * 73 * sizeof *a));
    free(data), free(x), free(a), free(b);
}

static const uint8_t weight_bytes[720000];
static const struct weight weights[] = {
    {.rows = 101, .row_bytes = 10, .data = weight_bytes},
    {.rows = 7, .row_bytes = 1000, .data = weight_bytes},
    {.rows = 240, .row_bytes = 3000, .data = weight_bytes},
};

/* A worker expects the rows of its share, as far as they are those of one weight. */
static void expect_share(struct worker *w, void *arg) {
    const struct weight *const all[] = {&weights[0], &weights[1], &weights[2]};
    int begin, end, first = 0, i = 0;
    worker_share(w, 348, 4, &begin, &end);
    matmul_expect(w, all, 3);
    while (begin >= first + weights[i].rows) first += weights[i++].rows;
    int rows = (end < first + weights[i].rows ? end : first + weights[i].rows) - begin;
    struct team_count *bad = arg;
    bool right = w->soon == weights[i].data + (size_t)(begin - first) * weights[i].row_bytes &&
                 w->soon_end > w->soon && w->soon_end <= w->soon + (size_t)rows * weights[i].row_bytes;
    matmul_expect(w, all, 0);
    if (!right || w->soon || w->soon_end) team_done(w, bad);
}

static void check_expect(void) {
    struct team_count bad = {0};
    for (int threads = 1; threads <= 5; threads++) {
        struct team *team = team_create(threads, NULL);
        team_run(team, expect_share, &bad);
        team_free(team);
    }
    CHECK(bad.n == 0);
}

static void check_isa(const struct kernels *c, const struct kernels *k) {
    static const int batches[] = {1, 2, 3, 5, 6, 7, 8, 12, 17, 40, 49, 95};
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        int elements;
        size_t bytes;
        tensor_type_block(types[t], &elements, &bytes);
        for (int rows = 1; rows <= 70; rows += rows < 5 ? 1 : rows == 32 ? 1 : rows == 31 ? 1 : 13)
            check_shape(c, k, types[t], rows, batches[(size_t)rows % 12], elements * (1 + rows % 7));
        for (size_t i = 0; i < sizeof batches / sizeof *batches; i++)
            check_shape(c, k, types[t], 33, batches[i], elements == 1 ? 67 : 768);
        if (elements == 1)
            for (int cols = 1; cols < 40; cols += 3) check_shape(c, k, types[t], 5, 1 + cols % 4, cols);
        check_threads(k, types[t], 1);
        check_threads(k, types[t], 4);
        check_threads(k, types[t], 37);
        check_threads(k, types[t], 70);
        check_gated(k, types[t], 1);
        check_gated(k, types[t], 3);
        check_gated(k, types[t], 61);
        check_coarse(k, types[t], 61);
    }
}

int main(void) {
    const struct kernels *c = kernels_select("c", NULL);
    for (size_t i = 0; i < sizeof isas / sizeof *isas; i++) {
        struct error err;
        const struct kernels *k = kernels_select(isas[i], &err);
        if (k) check_isa(c, k);
        else printf("skipped: %s\n", err.text);
    }
    check_expect();
    struct error err;
    CHECK(!kernels_select("z80", &err) && strstr(err.text, "z80"));
    CHECK(kernels_select(NULL, &err));
    return check_done("matmul");
}
