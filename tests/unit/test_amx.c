/* The AMX products with the tile instructions played by a model in C, against
 * those of VNNI: so their layout is tested where there are no tiles. */
#include <stdlib.h>
#include <string.h>

#include "../../kernels/kernels.h"
#include "check.h"

#ifdef __x86_64__ /* built with the flags of kernels/quant_amx.c */
#include <immintrin.h>

/* Eight tiles of 16 rows of 64 bytes, and their shapes: Intel SDM, volume 2,
 * TDPBSUD and its neighbours. */
static uint8_t tiles[8][16][64];
static struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} config;

static void model_load(int tile, const void *base, size_t stride) {
    CHECK(config.palette == 1);
    memset(tiles[tile], 0, sizeof tiles[tile]);
    for (int r = 0; r < config.rows[tile]; r++)
        memcpy(tiles[tile][r], (const uint8_t *)base + (size_t)r * stride, config.row_bytes[tile]);
}

static void model_store(int tile, void *base, size_t stride) {
    for (int r = 0; r < config.rows[tile]; r++)
        memcpy((uint8_t *)base + (size_t)r * stride, tiles[tile][r], config.row_bytes[tile]);
}

/* Signed bytes of a, unsigned ones of b. */
static void model_dot(int sum, int a, int b) {
    CHECK(config.rows[a] == config.rows[sum] && config.row_bytes[b] == config.row_bytes[sum]);
    CHECK(config.row_bytes[a] == 4 * config.rows[b]);
    for (int m = 0; m < config.rows[sum]; m++)
        for (int n = 0; n < config.row_bytes[sum] / 4; n++) {
            int32_t s;
            memcpy(&s, &tiles[sum][m][4 * n], sizeof s);
            for (int k = 0; k < config.row_bytes[a]; k++)
                s += (int8_t)tiles[a][m][k] * tiles[b][k / 4][4 * n + k % 4];
            memcpy(&tiles[sum][m][4 * n], &s, sizeof s);
        }
}

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbsud
#define _tile_loadconfig(c) memcpy(&config, c, sizeof config)
#define _tile_release() memset(&config, 0, sizeof config)
#define _tile_zero(tile) memset(tiles[tile], 0, sizeof tiles[tile])
#define _tile_loadd model_load
#define _tile_stored model_store
#define _tile_dpbsud model_dot

#define gemm_min_amx model_gemm_min
#define gemm_zero_amx model_gemm_zero
#define gemm_zero_16_amx model_gemm_zero_16
#include "../../kernels/quant_amx.c"

static void *allocate(size_t bytes) {
    void *p = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!p) abort();
    return p;
}

static void check_product(const struct kernels *k, enum tensor_type type, matmul_fn model, int rows, int n,
                          int cols) {
    const struct quant_format *f = quant_format(type);
    struct weight w = {
        .type = type, .rows = rows, .cols = cols, .row_bytes = (size_t)(cols / f->block * f->bytes)};
    uint8_t *data = allocate(w.row_bytes * (size_t)rows);
    for (size_t i = 0; i < w.row_bytes * (size_t)rows; i++) data[i] = (uint8_t)(i * 2654435761u >> 13) & 0xbb;
    w.data = data;
    float *x = allocate((size_t)(n * cols) * sizeof *x);
    for (int i = 0; i < n * cols; i++) x[i] = (float)(i * 7919 % 1000) / 500 - 1;
    struct acts a = {n, cols, x, allocate(acts_bytes(n, cols))};
    for (int i = 0; i < n; i++) k->quantize(&a, i);
    size_t bytes = (size_t)(n * rows) * sizeof(float);
    float *expected = allocate(bytes), *got = allocate(bytes);
    void *scratch = allocate(matmul_scratch_bytes(cols));
    for (int add = 0; add < 2; add++) {
        for (int i = 0; i < n * rows; i++) expected[i] = got[i] = 3;
        for (int r = 0; r < rows; r += PANEL) {
            int end = r + PANEL < rows ? r + PANEL : rows;
            k->matmul[type](&w, r, end, &a, expected, (size_t)rows, add, scratch);
            model(&w, r, end, &a, got, (size_t)rows, add, scratch);
        }
        CHECK(!memcmp(expected, got, bytes));
    }
    free(data), free(x), free(a.q8), free(expected), free(got), free(scratch);
}

int main(void) {
    struct error err;
    const struct kernels *k = kernels_select("avx512vnni", &err);
    if (!k) {
        printf("skipped: %s\n", err.text);
        return check_done("amx");
    }
    for (int n = 14; n <= 50; n += 6)
        for (int rows = 9; rows < 70; rows += 20) {
            check_product(k, TENSOR_Q4_1, model_gemm_min, rows, n, 96);
            check_product(k, TENSOR_Q8_0, model_gemm_zero, rows, n, 64);
            check_product(k, TENSOR_Q6_K, model_gemm_zero_16, rows, n, 256);
        }
    return check_done("amx");
}
#else
int main(void) {
    printf("skipped: AMX is x86-64's\n");
    return check_done("amx");
}
#endif
