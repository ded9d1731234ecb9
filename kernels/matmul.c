/* matmul.c - how matrix products are split between workers.
 *
 * The arithmetic is in the tables' matvec and matmul functions; every element
 * of a result is computed by one worker, always in the same way. */
#include <time.h>

#include "blas.h"
#include "prefetch.h"

static size_t round_up(size_t n, size_t step) { return (n + step - 1) / step * step; }

static size_t act_blocks(int cols) { return round_up((size_t)cols, 4 * ACT_BLOCK) / ACT_BLOCK; }

/* The arrays lie one after another; each starts on a cache line. */
struct act_view act_view(const struct acts *a) {
    size_t n = (size_t)a->n, blocks = act_blocks(a->cols);
    size_t per_block = round_up(n * blocks * sizeof(float), 64);
    struct act_view v = {.blocks = (int)blocks, .q_stride = blocks * ACT_BLOCK};
    uint8_t *p = a->q8;
    v.q = (int8_t *)p;
    p += n * v.q_stride;
    v.scale = (float *)p;
    v.scaled_sum = (float *)(p + per_block);
    v.offset = (int32_t *)(p + 2 * per_block);
    v.half_offset = (int32_t *)(p + 3 * per_block);
    return v;
}

static size_t act_view_bytes(int n, int cols) {
    size_t blocks = (size_t)n * act_blocks(cols);
    return blocks * ACT_BLOCK + 5 * round_up(blocks * sizeof(float), 64);
}

bool acts_heed_precise(const struct kernels *k, int n) { return k->tiles_from && n >= k->tiles_from; }

size_t acts_bytes(const struct kernels *k, int n, int cols) {
    size_t bytes = act_view_bytes(n, cols), halves = (size_t)n * (size_t)cols * 2 * sizeof(uint16_t);
    return acts_heed_precise(k, n) && halves > bytes ? halves : bytes;
}

void acts_prepare_row(const struct kernels *k, const struct acts *a, int row) {
    if (a->cols % ACT_BLOCK == 0) k->quantize(a, row);
}

void acts_prepare(struct worker *w, const struct kernels *k, const struct acts *a) {
    if (a->n == 1) return; /* see run_one */
    int begin, end;
    worker_range(w, a->n, 1, &begin, &end);
    for (int i = begin; i < end; i++) acts_prepare_row(k, a, i);
    team_barrier(w);
}

/* A panel of weights as float32; other uses are smaller. */
static size_t weights_bytes(int max_cols) {
    size_t cols = round_up((size_t)max_cols, MAX_BLOCK);
    return PANEL * (cols * sizeof(float) + MAX_BLOCK);
}

/* Behind it, a panel of two results. */
size_t matmul_scratch_bytes(int max_rows, int max_cols) {
    return weights_bytes(max_cols) + 2 * (size_t)max_rows * WIDEST_PANEL * sizeof(float);
}

static const uint8_t *weight_row_data(const struct weight *w, int row) {
    return w->data + (size_t)row * w->row_bytes;
}

static struct weight weight_rows(const struct weight *w, int begin, int end) {
    struct weight part = *w;
    part.data = weight_row_data(w, begin);
    part.rows = end - begin;
    return part;
}

#define FEW_CHUNK 32       /* weight rows that stay in the cache while a few activation rows pass */
#define MEASURED (1 << 20) /* bytes of weights for each worker from which on the workers' speeds are measured */
#define SOON (64 << 10)    /* bytes of what is read soon that the second-level cache has room for beside all else */
#define GATED_CHUNK 512    /* weight rows whose results wait for those of the gate */

static const struct weight *read_first(const struct product *o) { return o->gate ? o->gate : o->w; }

/* Rows begin .. end - 1 of a product with one activation row; `next` is what the worker reads then. */
static void matvec_rows(const struct kernels *k, const struct product *o, int begin, int end, const uint8_t *next,
                        const struct acts *a, int i, void *scratch) {
    float *y = o->y + (size_t)i * o->y_stride + begin, values[GATED_CHUNK];
    struct weight rows = weight_rows(o->w, begin, end), gate;
    rows.next = next;
    if (o->gate) {
        gate = weight_rows(o->gate, begin, end);
        gate.next = rows.data;
        k->matvec[gate.type](&gate, 0, gate.rows, a, i, values, false, scratch);
    }
    k->matvec[rows.type](&rows, 0, rows.rows, a, i, y, o->add, scratch);
    if (o->gate) k->silu_mul(y, values, y, rows.rows);
}

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Matrix-vector: every worker gets a share of all rows by its speed, and reads a
 * contiguous part of each weight. */
static void run_matvec(struct worker *w, const struct kernels *k, const struct product *products,
                       int n_products, const struct acts *a, void *scratch) {
    int total = 0, begin, end, first = 0;
    for (int p = 0; p < n_products; p++) total += products[p].w->rows;
    worker_share(w, total, 4, &begin, &end);
    bool measure = a->n == 1 && (double)total * (double)products[0].w->row_bytes > (double)w->n * MEASURED;
    double start = measure ? seconds() : 0;
    for (int p = 0; p < n_products; first += products[p++].w->rows) {
        const struct product *o = &products[p];
        int from = begin > first ? begin - first : 0;
        int to = end - first < o->w->rows ? end - first : o->w->rows;
        int step = a->n > 1 ? FEW_CHUNK : o->gate ? GATED_CHUNK : to - from;
        const uint8_t *next = end > first + o->w->rows ? read_first(&products[p + 1])->data : w->soon;
        for (int r = from; r < to; r += step) {
            int stop = r + step < to ? r + step : to;
            const uint8_t *then = stop < to ? weight_row_data(read_first(o), stop) : next;
            for (int i = 0; i < a->n; i++) matvec_rows(k, o, r, stop, then, a, i, scratch);
        }
    }
    if (w->soon) w->soon += PREFETCH_FAR; /* so far the last rows have prefetched it */
    double took = measure ? seconds() - start : 0;
    if (took > 0 && end > begin) worker_measured(w, (end - begin) / took);
}

/* One activation row: every worker quantises it for itself, which takes less time
 * than waiting for another to do it. */
static void run_one(struct worker *w, const struct kernels *k, const struct product *products, int n_products,
                    const struct acts *a, void *scratch) {
    struct acts own = *a;
    own.q8 = scratch;
    if (a->cols % ACT_BLOCK == 0) k->quantize(&own, 0);
    run_matvec(w, k, products, n_products, &own, (uint8_t *)scratch + act_view_bytes(1, a->cols));
}

void matmul_expect(struct worker *w, const struct weight *const *weights, int n) {
    int total = 0, begin, end, p = 0;
    w->soon = w->soon_end = NULL;
    for (int i = 0; i < n; i++) total += weights[i]->rows;
    worker_share(w, total, 4, &begin, &end);
    if (begin == end) return;
    for (; begin >= weights[p]->rows; p++) {
        begin -= weights[p]->rows;
        end -= weights[p]->rows;
    }
    if (end > weights[p]->rows) end = weights[p]->rows;
    w->soon = weight_row_data(weights[p], begin);
    w->soon_end = weight_row_data(weights[p], end);
    if (w->soon_end - w->soon > SOON) w->soon_end = w->soon + SOON;
}

static int panels(const struct weight *w, int panel) { return (w->rows + panel - 1) / panel; }

/* A panel of both products of a gated one, which meet in the cache; only what comes out of them goes to memory. */
static void matmul_gated(const struct kernels *k, matmul_fn fn, const struct product *o, int begin, int end,
                         const struct acts *a, void *scratch) {
    const struct weight gate = weight_rows(o->gate, begin, end), up = weight_rows(o->w, begin, end);
    size_t width = (size_t)(end - begin), n = (size_t)a->n;
    float *gates = (float *)(void *)((uint8_t *)scratch + weights_bytes(a->cols)), *ups = gates + n * width;
    fn(&gate, 0, gate.rows, a, gates, width, false, scratch);
    fn(&up, 0, up.rows, a, ups, width, false, scratch);
    for (size_t i = 0; i < n; i++)
        k->silu_mul(o->y + i * o->y_stride + begin, gates + i * width, ups + i * width, end - begin);
}

/* GEMM: workers take panels of rows as they become free. */
static void run_matmul(struct worker *w, const struct kernels *k, const struct product *products,
                       int n_products, const struct acts *a, void *scratch) {
    bool blas = blas_takes(products, n_products, a);
    int panel = blas ? BLAS_ROWS : PANEL, total = 0;
    for (int p = 0; p < n_products; p++) total += panels(products[p].w, panel);
    for (int i; (i = team_next(w)) < total;) {
        const struct product *o = products;
        while (i >= panels(o->w, panel)) i -= panels(o++->w, panel);
        int begin = i * panel, end = begin + panel < o->w->rows ? begin + panel : o->w->rows;
        bool tiles = acts_heed_precise(k, a->n) && is_quantised(o->w->type);
        struct acts acts = *a;
        acts.precise = a->precise && !o->coarse;
        matmul_fn fn = blas ? blas_matmul : tiles ? k->tiles : k->matmul[o->w->type];
        if (o->gate) matmul_gated(k, fn, o, begin, end, &acts, scratch);
        else fn(o->w, begin, end, &acts, o->y, o->y_stride, o->add, scratch);
    }
}

void matmul(struct worker *w, const struct kernels *k, const struct product *products, int n_products,
            const struct acts *a, void *scratch) {
    void *own = (uint8_t *)scratch + (size_t)w->id * matmul_scratch_bytes(a->n, a->cols);
    if (a->n == 1) run_one(w, k, products, n_products, a, own);
    else if (a->n <= k->max_few) run_matvec(w, k, products, n_products, a, own);
    else run_matmul(w, k, products, n_products, a, own);
}
