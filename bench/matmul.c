/* matmul.c - speed of the matrix products, per instruction set and weight type.
 *
 *     bench-matmul [-t THREADS] [ISA [TYPE]]
 *
 * Decode: GB/s of weights read, for a matrix too large for the caches and for
 * one that fits L2. Prompts: GOPS (two operations per multiply-add) for batches
 * of 512 rows. Weights are random; shapes are SmolLM2-135M's. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../kernels/kernels.h"

#define LARGE (512 << 20) /* server chips have caches of which 128 MB stay in part */

struct shape {
    const char *name;
    int rows; /* 0: as many as LARGE bytes hold */
    int cols, n;
};

static const struct shape shapes[] = {
    {"decode 576", 0, 576, 1},       {"decode 1536", 0, 1536, 1}, {"decode in L2", 1024, 768, 1},
    {"3 rows", 0, 1536, 3},          {"8 rows", 1536, 1536, 8},   {"prompt 576", 1536, 576, 512},
    {"prompt 1536", 576, 1536, 512},
};

static const enum tensor_type types[] = {TENSOR_Q4_1, TENSOR_Q4_0, TENSOR_Q8_0, TENSOR_Q5_0,
                                         TENSOR_Q5_1, TENSOR_Q4_K, TENSOR_Q5_K, TENSOR_Q6_K,
                                         TENSOR_F16,  TENSOR_BF16, TENSOR_F32};

struct job {
    const struct kernels *k;
    struct product product;
    struct acts acts;
    void *scratch;
    int repeats;
};

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void *allocate(size_t bytes) {
    void *p = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!p) {
        fprintf(stderr, "out of memory\n");
        exit(1);
    }
    return p;
}

static void run_job(struct worker *w, void *arg) {
    struct job *job = arg;
    for (int i = 0; i < job->repeats; i++) {
        acts_prepare(w, job->k, &job->acts);
        matmul(w, job->k, &job->product, 1, &job->acts, job->scratch);
        team_barrier(w);
    }
}

/* Random bytes, but ordinary numbers where floats are: products with subnormal
 * ones are slow. */
static void fill(uint8_t *data, size_t bytes, enum tensor_type type) {
    uint32_t state = 1;
    size_t size = type == TENSOR_F32 ? 4 : 2; /* of a float: its last byte has the exponent */
    bool floats = type == TENSOR_F32 || type == TENSOR_BF16;
    for (size_t i = 0; i < bytes; i++) {
        state = state * 1664525 + 1013904223;
        uint8_t byte = (uint8_t)(state >> 24);
        data[i] = floats && i % size == size - 1 ? (byte & 0x81) | 0x3c : byte & 0xbb;
    }
}

static void measure(struct team *team, const struct kernels *k, enum tensor_type type,
                    const struct shape *s) {
    int elements;
    size_t bytes;
    if (!tensor_type_block(type, &elements, &bytes) || s->cols % elements) return;
    struct weight w = {
        .type = type, .rows = s->rows, .cols = s->cols, .row_bytes = (size_t)(s->cols / elements) * bytes};
    if (!w.rows) w.rows = (int)(LARGE / w.row_bytes);
    size_t total = w.row_bytes * (size_t)w.rows;
    uint8_t *data = allocate(total);
    fill(data, total, type);
    w.data = data;
    float *x = allocate((size_t)s->n * (size_t)s->cols * sizeof *x);
    for (int i = 0; i < s->n * s->cols; i++) x[i] = (float)(i * 7919 % 1000) / 500 - 1;
    struct job job = {.k = k, .repeats = 1};
    job.acts = (struct acts){s->n, s->cols, x, allocate(acts_bytes(k, s->n, s->cols)), false};
    float *y = allocate((size_t)s->n * (size_t)w.rows * sizeof *y);
    job.product = (struct product){.w = &w, .y = y, .y_stride = (size_t)w.rows};
    job.scratch = allocate((size_t)team_size(team) * matmul_scratch_bytes(s->n, s->cols));
    double best = 1e9, until = seconds() + 0.5;
    if (s->rows && s->n == 1) job.repeats = 50;
    do {
        double t = seconds();
        team_run(team, run_job, &job);
        t = (seconds() - t) / job.repeats;
        if (t < best) best = t;
    } while (seconds() < until);
    double ops = 2.0 * s->n * (double)w.rows * s->cols;
    printf("%-10s %-5s %-12s %8.1f us %7.1f GB/s %8.1f GOPS\n", kernels_isa(k), tensor_type_name(type),
           s->name, best * 1e6, (double)total / best * 1e-9, ops / best * 1e-9);
    fflush(stdout);
    free(data), free(x), free(y), free(job.acts.q8), free(job.scratch);
}

int main(int argc, char **argv) {
    int threads = 2;
    if (argc > 2 && !strcmp(argv[1], "-t")) {
        threads = atoi(argv[2]);
        argv += 2, argc -= 2;
    }
    struct error err;
    const struct kernels *k = kernels_select(argc > 1 ? argv[1] : NULL, &err);
    struct team *team = k ? team_create(threads > 0 ? threads : 1, &err) : NULL;
    if (!team) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        if (argc > 2 && strcmp(argv[2], tensor_type_name(types[t]))) continue;
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) measure(team, k, types[t], &shapes[s]);
    }
    team_free(team);
    return 0;
}
