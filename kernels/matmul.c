/* matmul.c - how matrix products are split between workers.
 *
 * The arithmetic is in the tables' matvec and matmul functions; every element
 * of a result is computed by one worker, always in the same way. */
#include "internal.h"

#include "quants.h"

static size_t round_up(size_t n, size_t step) { return (n + step - 1) / step * step; }

/* The arrays lie one after another; each starts on a cache line. */
struct act_view act_view(const struct acts *a) {
    size_t n = (size_t)a->n, blocks = ((size_t)a->cols + ACT_BLOCK - 1) / ACT_BLOCK;
    size_t per_block = round_up(n * blocks * sizeof(float), 64);
    struct act_view v = {.blocks = (int)blocks, .q_stride = round_up((size_t)a->cols, 64)};
    uint8_t *p = a->q8;
    v.q = (int8_t *)p;
    p += n * v.q_stride;
    v.scale = (float *)p;
    v.scaled_sum = (float *)(p + per_block);
    v.sum = (int32_t *)(p + 2 * per_block);
    v.half_sum = (int32_t *)(p + 3 * per_block);
    return v;
}

size_t acts_bytes(int n, int cols) {
    size_t blocks = ((size_t)cols + ACT_BLOCK - 1) / ACT_BLOCK;
    return (size_t)n * round_up((size_t)cols, 64) + 5 * round_up((size_t)n * blocks * sizeof(float), 64);
}

void acts_prepare(struct worker *w, const struct kernels *k, struct acts *a) {
    if (a->cols % ACT_BLOCK == 0) {
        int begin, end;
        worker_range(w, a->n, 1, &begin, &end);
        for (int i = begin; i < end; i++) k->quantize(a, i);
    }
    team_barrier(w);
}

size_t matmul_scratch_bytes(int max_cols) {
    size_t cols = round_up((size_t)max_cols, MAX_BLOCK);
    return round_up(PANEL * cols * sizeof(float), 64);
}

static int panels(const struct weight *w) { return (w->rows + PANEL - 1) / PANEL; }

void matmul(struct worker *w, const struct kernels *k, const struct product *products, int n_products,
            const struct acts *a, void *scratch) {
    uint8_t *own = (uint8_t *)scratch + (size_t)w->id * matmul_scratch_bytes(a->cols);
    int total = 0;
    for (int p = 0; p < n_products; p++) total += panels(products[p].w);
    int begin = 0, end = 0;
    worker_range(w, total, 1, &begin, &end);
    int first = 0;
    for (int p = 0; p < n_products; p++) {
        const struct product *o = &products[p];
        int n = panels(o->w);
        int from = begin > first ? begin - first : 0, to = end - first < n ? end - first : n;
        const product_fn *table = a->n == 1 ? k->matvec : k->matmul;
        for (int i = from; i < to; i++) {
            int last = (i + 1) * PANEL < o->w->rows ? (i + 1) * PANEL : o->w->rows;
            table[o->w->type](o->w, i * PANEL, last, a, o->y, o->y_stride, o->add, own);
        }
        first += n;
    }
}
