/* quant_amx.c - batches times quantised weights in AMX tiles, in bfloat16.
 *
 * Whole bytes in tiles would have to be scaled after every 32 columns, which takes
 * longer than the products. So activations and weights are rounded to bfloat16
 * and summed in float32 over all columns: rounding to 8 bits of mantissa loses
 * less than activations of 8 bits that share a scale. Where products are to be
 * precise, what rounding leaves out is multiplied too: x*w is taken as
 * hi*hi + hi*lo + lo*hi, which is good to 16 bits. */
#include <immintrin.h>
#include <stdbool.h>

#include "quants.h"
#include "simd.h"
#include "simd_avx512.h"

#define TILE_ROWS 16
#define TILE_COLS 32                 /* bfloat16 in a row of a tile */
#define TILE (TILE_ROWS * TILE_COLS) /* elements */
#define BLOCK_ROWS (2 * TILE_ROWS)   /* activation rows multiplied at a time */
#define CHUNK 12                     /* tiles of columns whose weights stay in the L1 cache */

typedef uint16_t bf16;

/* What LDTILECFG reads (Intel SDM, volume 1, 18.3). */
struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

/* Tiles 0 to 3: sums of two times two tiles. 4 and 5: activations. 6 and 7: weights. */
static void configure_tiles(int rows) {
    int second = rows > TILE_ROWS ? rows - TILE_ROWS : TILE_ROWS;
    struct tile_config c = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        bool first_rows = i == 0 || i == 1 || i == 4, weights = i > 5;
        c.rows[i] = (uint8_t)(weights ? TILE_ROWS : !first_rows ? second : rows < TILE_ROWS ? rows : TILE_ROWS);
        c.row_bytes[i] = 64;
    }
    __asm__ volatile("" ::"r"(&c) : "memory"); /* gcc's intrinsics don't say that they read memory */
    _tile_loadconfig(&c);
}

INLINE __m512 widen(__m256i x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

/* 32 floats as bfloat16, and in *rest what that leaves out; 0 unless precise. */
INLINE __m512i split(__m512 a, __m512 b, bool precise, __m512i *rest) {
    __m512i hi = (__m512i)_mm512_cvtne2ps_pbh(b, a);
    *rest = _mm512_setzero_si512();
    if (precise) {
        a = _mm512_sub_ps(a, widen(_mm512_castsi512_si256(hi)));
        b = _mm512_sub_ps(b, widen(_mm512_extracti64x4_epi64(hi, 1)));
        *rest = (__m512i)_mm512_cvtne2ps_pbh(b, a);
    }
    return hi;
}

/* Two matrices of one shape: numbers rounded, and what rounding leaves out. */
struct halves {
    bf16 *hi, *lo;
};

/* Activations [n, cols], in the place of those of 8 bits. */
static struct halves act_halves(const struct acts *a) {
    bf16 *hi = a->q8;
    return (struct halves){hi, hi + (size_t)a->n * (size_t)a->cols};
}

void quantize_amx(const struct acts *a, int row) {
    if (a->n < AMX_LEAST) {
        quantize_avx512(a, row);
        return;
    }
    struct halves h = act_halves(a);
    size_t first = (size_t)row * (size_t)a->cols;
    for (size_t c = first; c < first + (size_t)a->cols; c += TILE_COLS) {
        __m512i lo, hi = split(_mm512_loadu_ps(a->f32 + c), _mm512_loadu_ps(a->f32 + c + 16), a->precise, &lo);
        _mm512_storeu_si512(h.hi + c, hi);
        if (a->precise) _mm512_storeu_si512(h.lo + c, lo);
    }
}

/* 16 columns of one row: d*(u - zero) + m. */
INLINE __m512 dequantize(const uint8_t *u, float d, float m) {
    __m512i wide = _mm512_cvtepu8_epi32(_mm_load_si128((const __m128i *)u));
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(wide), _mm512_set1_ps(d), _mm512_set1_ps(m));
}

/* Up to MAX_BLOCK columns of PANEL weight rows: u [PANEL, MAX_BLOCK], d and m [PANEL, MAX_BLOCK/16]. */
struct rows {
    uint8_t *u;
    float d[PANEL][MAX_BLOCK / 16], m[PANEL][MAX_BLOCK / 16];
};

/* Columns c .. c + n - 1 of weight rows begin .. end - 1; the last stands in for those missing from PANEL. */
static void unpack_rows(const struct weight *w, int begin, int end, int c, int n, struct rows *rows) {
    const struct quant_format *f = &quant_formats[w->type];
    for (int r = 0; r < PANEL; r++) {
        const uint8_t *row = w->data + (size_t)(begin + r < end ? begin + r : end - 1) * w->row_bytes;
        float *d = rows->d[r], *m = rows->m[r];
        for (int g = 0; g < n / f->group; g++) m[g] = 0;
        f->unpack(row + c / f->block * f->bytes, n / f->block, rows->u + r * MAX_BLOCK, d, m, 1);
        for (int g = 0; g < n / f->group; g++) m[g] -= (float)f->zero * d[g];
    }
}

/* 16 weight rows from r on times 32 columns from c on, transposed in pairs: [16, 16, 2]. */
INLINE void make_tile(const struct rows *rows, int r, int c, int group, bool precise, bf16 *hi_out, bf16 *lo_out) {
    __m512i hi[16], lo[16], out[16];
    int g0 = c / group, g1 = (c + 16) / group;
    for (int i = 0; i < TILE_ROWS; i++) {
        const uint8_t *u = rows->u + (r + i) * MAX_BLOCK + c;
        const float *d = rows->d[r + i], *m = rows->m[r + i];
        hi[i] = split(dequantize(u, d[g0], m[g0]), dequantize(u + 16, d[g1], m[g1]), precise, &lo[i]);
    }
    transpose_16x16(hi, out);
    for (int i = 0; i < 16; i++) _mm512_store_si512(hi_out + i * TILE_COLS, out[i]);
    if (!precise) return;
    transpose_16x16(lo, out);
    for (int i = 0; i < 16; i++) _mm512_store_si512(lo_out + i * TILE_COLS, out[i]);
}

/* All columns of PANEL weight rows as tiles: [cols/32, PANEL/16, 16, 16, 2]. */
static void unpack_tiles(const struct weight *w, int begin, int end, bool precise, uint8_t *scratch,
                         const struct halves *tiles) {
    int group = quant_formats[w->type].group;
    struct rows rows = {.u = scratch};
    bf16 *hi = tiles->hi, *lo = tiles->lo;
    for (int c = 0; c < w->cols; c += MAX_BLOCK) {
        int n = w->cols - c < MAX_BLOCK ? w->cols - c : MAX_BLOCK;
        unpack_rows(w, begin, end, c, n, &rows);
        for (int i = 0; i < n; i += TILE_COLS)
            for (int r = 0; r < PANEL; r += TILE_ROWS, hi += TILE, lo += TILE) {
                if (precise) make_tile(&rows, r, i, group, true, hi, lo);
                else make_tile(&rows, r, i, group, false, hi, lo);
            }
    }
}

/* y [up to 32 rows, 32] += activations [up to 32 rows, n_tiles * 32] times weight tiles. */
INLINE void multiply_block(bool two, bool add, const bf16 *x, size_t x_stride, const bf16 *tiles, size_t n_tiles,
                           float *y, size_t y_stride) {
    size_t x_bytes = x_stride * sizeof *x, y_bytes = y_stride * sizeof *y;
    const bf16 *x1 = x + TILE_ROWS * x_stride;
    float *y1 = y + TILE_ROWS * y_stride;
    if (add) {
        _tile_loadd(0, y, y_bytes);
        _tile_loadd(1, y + 16, y_bytes);
        if (two) _tile_loadd(2, y1, y_bytes);
        if (two) _tile_loadd(3, y1 + 16, y_bytes);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        if (two) _tile_zero(2);
        if (two) _tile_zero(3);
    }
    for (size_t t = 0; t < n_tiles; t++, x += TILE_COLS, x1 += TILE_COLS, tiles += 2 * TILE) {
        _tile_loadd(4, x, x_bytes);
        _tile_loadd(6, tiles, 64);
        _tile_loadd(7, tiles + TILE, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if (!two) continue;
        _tile_loadd(5, x1, x_bytes);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, y, y_bytes);
    _tile_stored(1, y + 16, y_bytes);
    if (two) _tile_stored(2, y1, y_bytes);
    if (two) _tile_stored(3, y1 + 16, y_bytes);
}

/* All n rows of x, of which n_tiles tiles of columns count, times weight tiles: the first `rows` columns of y. */
static void multiply(bool add, const bf16 *x, size_t x_stride, int n, const bf16 *tiles, size_t n_tiles, int rows,
                     float *y, size_t y_stride) {
    _Alignas(64) float part[BLOCK_ROWS][PANEL]; /* where y has fewer columns than a panel has rows */
    configure_tiles(BLOCK_ROWS);
    for (int i = 0; i < n; i += BLOCK_ROWS, x += BLOCK_ROWS * x_stride, y += BLOCK_ROWS * y_stride) {
        int left = n - i < BLOCK_ROWS ? n - i : BLOCK_ROWS;
        size_t bytes = (size_t)rows * sizeof *y;
        float *out = rows < PANEL ? part[0] : y;
        size_t stride = rows < PANEL ? PANEL : y_stride;
        for (int r = 0; r < left && rows < PANEL && add; r++) memcpy(part[r], y + (size_t)r * y_stride, bytes);
        if (left < BLOCK_ROWS) configure_tiles(left);
        if (left > TILE_ROWS) multiply_block(true, add, x, x_stride, tiles, n_tiles, out, stride);
        else multiply_block(false, add, x, x_stride, tiles, n_tiles, out, stride);
        for (int r = 0; r < left && rows < PANEL; r++) memcpy(y + (size_t)r * y_stride, part[r], bytes);
    }
}

void gemm_amx(const struct weight *w, int begin, int end, const struct acts *a, float *y, size_t y_stride, bool add,
              void *scratch) {
    uint8_t *u = scratch; /* [PANEL, MAX_BLOCK] */
    bf16 *hi = (bf16 *)(u + PANEL * MAX_BLOCK);
    struct halves weights = {hi, hi + (size_t)w->cols * PANEL}, x = act_halves(a);
    unpack_tiles(w, begin, end, a->precise, u, &weights);
    const struct {
        const bf16 *x, *w;
    } terms[] = {{x.hi, weights.hi}, {x.hi, weights.lo}, {x.lo, weights.hi}};
    size_t cols = (size_t)w->cols, n_tiles = cols / TILE_COLS, n_chunks = (n_tiles + CHUNK - 1) / CHUNK;
    for (size_t i = 0; i < n_chunks; i++) {
        size_t t = n_tiles * i / n_chunks, n = n_tiles * (i + 1) / n_chunks - t;
        for (int j = 0; j < (a->precise ? 3 : 1); j++, add = true)
            multiply(add, terms[j].x + t * TILE_COLS, cols, a->n, terms[j].w + t * 2 * TILE, n, end - begin,
                     y + begin, y_stride);
    }
    _tile_release();
}
