/* quant_amx.c - batches times quantised weights in AMX tiles.
 *
 * 16 activation rows and 16 weight rows make a tile of 32-bit sums over one group
 * of columns. Its panels are those of the 512-bit GEMM, which takes the rows that
 * don't fill a tile. */
#include <immintrin.h>
#include <stdbool.h>

static inline __m512i dot_bytes(__m512i sum, __m512i u, __m512i q, bool wide) {
    (void)wide;
    return _mm512_dpbusd_epi32(sum, u, q);
}

#include "quant_gemm_avx512.h"
#include "simd.h"

#define TILE_ROWS 16

/* What LDTILECFG reads (Intel SDM, volume 1, 18.3). */
struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

/* Tiles 0 and 1: sums [16 activation rows, 16 weight rows] of two groups. 2 and 3:
 * activations [16, group]; 4 and 5: weights [group/4, 16, 4]. */
static void configure_tiles(int group) {
    struct tile_config c = {.palette = 1};
    for (int i = 0; i < 6; i++) {
        c.rows[i] = (uint8_t)(i < 4 ? TILE_ROWS : group / 4);
        c.row_bytes[i] = (uint16_t)(i == 2 || i == 3 ? group : 64);
    }
    __asm__ volatile("" ::"r"(&c) : "memory"); /* gcc's intrinsics don't say that they read memory */
    _tile_loadconfig(&c);
}

/* 32-bit sums of one group, scaled and added to the results. */
INLINE void add_group(int32_t dot[TILE_ROWS][16], int group, int zero, size_t g, const struct panel *p,
                      const struct act_view *x, __m512 sum[TILE_ROWS]) {
    size_t blocks = (size_t)x->blocks, per_block = (size_t)(ACT_BLOCK / group);
    const int32_t *offset = group == 16 ? x->half_offset : x->offset;
    __m512 d = _mm512_load_ps(p->d + g * PANEL), m = zero ? d : _mm512_load_ps(p->m + g * PANEL);
    __m512 minus_bias_d = _mm512_mul_ps(d, _mm512_set1_ps(-SUM_BIAS));
    for (size_t i = 0; i < TILE_ROWS; i++) {
        size_t b = i * blocks + g / per_block;
        __m512i whole =
            _mm512_add_epi32(_mm512_load_si512(dot[i]), start_dot(&offset[i * blocks * per_block + g], zero));
        sum[i] = _mm512_fmadd_ps(scale_dot(whole, d, minus_bias_d), _mm512_set1_ps(x->scale[b]), sum[i]);
        if (!zero) sum[i] = _mm512_fmadd_ps(m, _mm512_set1_ps(x->scaled_sum[b]), sum[i]);
    }
}

/* 16 activation rows times 16 rows of the panel, `rows` of which exist. Two
 * groups at a time, so that one is multiplied while the other is scaled. */
INLINE void amx_tile(int group, int zero, int groups, const struct panel *p, const struct act_view *x,
                     float *y, size_t y_stride, int rows, bool add) {
    _Alignas(64) int32_t dot[2][TILE_ROWS][16];
    __m512 sum[TILE_ROWS];
    for (int i = 0; i < TILE_ROWS; i++) sum[i] = _mm512_setzero_ps();
    for (int g = 0; g < groups; g += 2) {
        _tile_zero(0);
        _tile_loadd(2, x->q + g * group, x->q_stride);
        _tile_loadd(4, p->u + g * group * PANEL, 4 * PANEL);
        _tile_dpbsud(0, 2, 4);
        _tile_stored(0, dot[0], 64);
        bool two = g + 1 < groups;
        if (two) {
            _tile_zero(1);
            _tile_loadd(3, x->q + (g + 1) * group, x->q_stride);
            _tile_loadd(5, p->u + (g + 1) * group * PANEL, 4 * PANEL);
            _tile_dpbsud(1, 3, 5);
            _tile_stored(1, dot[1], 64);
        }
        add_group(dot[0], group, zero, (size_t)g, p, x, sum);
        if (two) add_group(dot[1], group, zero, (size_t)g + 1, p, x, sum);
    }
    __mmask16 mask = first_lanes(rows);
    for (int i = 0; i < TILE_ROWS; i++, y += y_stride) {
        if (add) sum[i] = _mm512_add_ps(sum[i], _mm512_maskz_loadu_ps(mask, y));
        _mm512_mask_storeu_ps(y, mask, sum[i]);
    }
}

INLINE void amx_panel(int group, int zero, const struct weight *w, int begin, int end, const struct acts *a,
                      float *y, size_t y_stride, bool add, void *scratch) {
    struct panel p =
        unpack_panel(w, begin, end, (uint8_t)(zero - quant_formats[w->type].zero), interleave_512, scratch);
    int tiled = a->n / TILE_ROWS * TILE_ROWS, groups = w->cols / group;
    if (tiled) configure_tiles(group);
    for (int v = 0; v < end - begin; v += 16) {
        struct panel part = {p.u + 4 * v, p.d + v, p.m + v};
        for (int i = 0; i < tiled; i += TILE_ROWS) {
            struct act_view x = act_row(a, i);
            float *out = y + (size_t)i * y_stride + begin + v;
            amx_tile(group, zero, groups, &part, &x, out, y_stride, end - begin - v, add);
        }
    }
    if (tiled) _tile_release();
    struct gemm_out out = {y + begin, y_stride, end - begin, add};
    run_tiles(group, zero, groups, &p, a, tiled, &out);
}

#define AMX(name, group, zero)                                                                             \
    void name(const struct weight *w, int begin, int end, const struct acts *a, float *y, size_t y_stride, \
              bool add, void *scratch) {                                                                   \
        amx_panel(group, zero, w, begin, end, a, y, y_stride, add, scratch);                               \
    }

AMX(gemm_min_amx, 32, 0)
AMX(gemm_zero_amx, 32, 128)
AMX(gemm_zero_16_amx, 16, 128)
