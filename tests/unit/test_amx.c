/* The AMX products with the tile instructions, and rounding to bfloat16, played by a
 * model in C: so their layout is tested where there are no tiles. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../../kernels/kernels.h"
#include "check.h"

#ifdef __x86_64__ /* built with the flags of kernels/quant_amx.c */
#include <immintrin.h>

/* Eight tiles of 16 rows of 64 bytes, and their shapes: Intel SDM, volume 2,
 * TDPBF16PS and its neighbours. */
static uint8_t model_tiles[8][16][64];
static struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} config;

static void model_load(int tile, const void *base, size_t stride) {
    CHECK(config.palette == 1);
    memset(model_tiles[tile], 0, sizeof model_tiles[tile]);
    for (int r = 0; r < config.rows[tile]; r++)
        memcpy(model_tiles[tile][r], (const uint8_t *)base + (size_t)r * stride, config.row_bytes[tile]);
}

static void model_store(int tile, void *base, size_t stride) {
    for (int r = 0; r < config.rows[tile]; r++)
        memcpy((uint8_t *)base + (size_t)r * stride, model_tiles[tile][r], config.row_bytes[tile]);
}

static float wide(const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return bf16_to_f32(h);
}

static void model_dot(int sum, int a, int b) {
    CHECK(config.rows[a] == config.rows[sum] && config.row_bytes[b] == config.row_bytes[sum]);
    CHECK(config.row_bytes[a] == 4 * config.rows[b]);
    for (int m = 0; m < config.rows[sum]; m++)
        for (int n = 0; n < config.row_bytes[sum] / 4; n++) {
            float s;
            memcpy(&s, &model_tiles[sum][m][4 * n], sizeof s);
            for (int k = 0; k < config.row_bytes[a] / 2; k++)
                s += wide(&model_tiles[a][m][2 * k]) * wide(&model_tiles[b][k / 2][4 * n + 2 * (k % 2)]);
            memcpy(&model_tiles[sum][m][4 * n], &s, sizeof s);
        }
}

/* To the nearest, ties to even; b's are the lower 16. */
static __m512i model_round(__m512 a, __m512 b) {
    uint32_t in[32];
    uint16_t out[32];
    memcpy(in, &b, sizeof b);
    memcpy(in + 16, &a, sizeof a);
    for (int i = 0; i < 32; i++) out[i] = (uint16_t)((in[i] + 0x7fff + (in[i] >> 16 & 1)) >> 16);
    return _mm512_loadu_si512(out);
}

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig(c) memcpy(&config, c, sizeof config)
#define _tile_release() memset(&config, 0, sizeof config)
#define _tile_zero(tile) memset(model_tiles[tile], 0, sizeof model_tiles[tile])
#define _tile_loadd model_load
#define _tile_stored model_store
#define _tile_dpbf16ps model_dot
#define _mm512_cvtne2ps_pbh model_round

#define gemm_amx model_gemm
#define quantize_amx model_quantize
#include "../../kernels/quant_amx.c"

static void *allocate(size_t bytes) {
    void *p = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!p) abort();
    return p;
}

/* Against the dequantised weights in double precision. */
static void check_product(enum tensor_type type, int rows, int n, int cols, bool precise, bool add) {
    const struct quant_format *f = quant_format(type);
    struct weight w = {
        .type = type, .rows = rows, .cols = cols, .row_bytes = (size_t)(cols / f->block * f->bytes)};
    uint8_t *data = allocate(w.row_bytes * (size_t)rows);
    for (size_t i = 0; i < w.row_bytes * (size_t)rows; i++) data[i] = (uint8_t)(i * 2654435761u >> 13) & 0xbb;
    w.data = data;
    float *x = allocate((size_t)(n * cols) * sizeof *x);
    for (int i = 0; i < n * cols; i++) x[i] = (float)(i * 7919 % 1000) / 500 - 1;
    struct acts a = {n, cols, x, allocate((size_t)(n * cols) * 2 * sizeof(bf16)), precise};
    for (int i = 0; i < n; i++) quantize_amx(&a, i);
    float *y = allocate((size_t)(n * rows) * sizeof *y), *row = allocate((size_t)cols * sizeof *row);
    void *scratch = allocate(matmul_scratch_bytes(n, cols));
    for (int i = 0; i < n * rows; i++) y[i] = 3;
    for (int r = 0; r < rows; r += PANEL)
        gemm_amx(&w, r, r + PANEL < rows ? r + PANEL : rows, &a, y, (size_t)rows, add, scratch);
    double worst = 0, squares = 0;
    for (int r = 0; r < rows; r++) {
        weight_row(NULL, &w, r, row);
        for (int i = 0; i < n; i++) {
            double sum = 0;
            for (int c = 0; c < cols; c++) sum += (double)row[c] * (double)x[i * cols + c];
            worst = worse(worst, fabs(sum + (add ? 3 : 0) - (double)y[i * rows + r]));
            squares += sum * sum;
        }
    }
    CHECK_NEAR(worst / sqrt(squares / (n * rows)), 0, precise ? 1e-4 : 0.04);
    free(data), free(x), free(a.q8), free(y), free(row), free(scratch);
}

static void check_products(void) {
    for (int n = AMX_LEAST; n <= 90; n += 7)
        for (int rows = 9; rows < 70; rows += 20) {
            bool precise = n % 2, add = rows % 40 > 9;
            check_product(TENSOR_Q4_1, rows, n, 96, precise, add);
            check_product(TENSOR_Q4_0, rows, n, 32 * 25, precise, add);
            check_product(TENSOR_Q8_0, rows, n, 64, precise, !add);
            check_product(TENSOR_Q6_K, rows, n, 256, precise, add);
        }
}

/* Runs on every CPU: the sanitizers clear what is around `err` with the widest vectors that they may use. */
__attribute__((target("no-avx"))) int main(void) {
    struct error err;
    if (kernels_select("avx512vnni", &err)) check_products();
    else printf("skipped: %s\n", err.text);
    return check_done("amx");
}
#else
int main(void) {
    printf("skipped: AMX is x86-64's\n");
    return check_done("amx");
}
#endif
