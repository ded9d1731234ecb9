/* quant_gemm_avx2.h - batches of activations times quantised weights in 256 bits.
 *
 * A panel of 32 weight rows is unpacked once, as strips of 16. Tiles of up to
 * TILE activation rows run over a strip: the sums of pairs of products stay in
 * 16 bits, in registers, for as many steps as can't overflow. One microkernel
 * serves every format; GEMM(name, group, zero, steps) makes it for one. */
#pragma once

#include "quant_panel.h"
#include "simd_avx2.h"

#define TILE 4               /* activation rows of a tile, whose 16-bit sums take half of the registers */
#define VECTORS 2            /* its weight rows, by eights */
#define STRIP (8 * VECTORS)  /* its weight rows */
#define PASS (3 * MAX_BLOCK) /* columns of a strip that stay in the first-level cache */

/* How a format's bytes are multiplied. */
struct recipe {
    int group; /* columns that share a scale */
    int zero;  /* -1: the panel is signed */
    int steps; /* products of two bytes whose sum fits 16 bits */
};

/* Strip by strip: out[PANEL/STRIP, cols/4, STRIP, 4]. */
static void interleave_strips(const uint8_t *rows, int cols, uint8_t shift, uint8_t *out) {
    const __m256i add = _mm256_set1_epi8((char)shift);
    for (int r = 0; r < PANEL; r += 8) {
        uint8_t *strip = out + r / STRIP * STRIP * cols + r % STRIP * 4;
        for (int c = 0; c < cols; c += 32) {
            __m256i x[8];
            for (int i = 0; i < 8; i++) {
                const uint8_t *row = rows + (r + i) * MAX_BLOCK + c;
                x[i] = _mm256_add_epi8(_mm256_loadu_si256((const __m256i *)row), add);
            }
            transpose_8x8(x);
            for (int i = 0; i < 8; i++) _mm256_storeu_si256((__m256i *)(strip + (c + 4 * i) * STRIP), x[i]);
        }
    }
}

INLINE __m256i multiply_pairs(struct recipe recipe, __m256i w, __m256i x) {
    if (recipe.zero >= 0) return _mm256_maddubs_epi16(w, x);
    return _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
}

/* Sums of 4 * steps columns in pairs: weights [steps, STRIP, 4] times n rows, from q[i] + c on. */
INLINE void add_steps(int n, struct recipe recipe, const uint8_t *u, const int8_t *const *q, int c,
                      __m256i sum[TILE][VECTORS]) {
    UNROLL for (int s = 0; s < recipe.steps; s++) {
        __m256i w[VECTORS];
        UNROLL for (int j = 0; j < VECTORS; j++) {
            w[j] = _mm256_load_si256((const __m256i *)(u + s * 4 * STRIP + 32 * j));
            KEEP(w[j]);
        }
        UNROLL for (int i = 0; i < n; i++) {
            int32_t four;
            memcpy(&four, q[i] + c + 4 * s, sizeof four);
            const __m256i x = _mm256_set1_epi32(four);
            UNROLL for (int j = 0; j < VECTORS; j++) {
                __m256i pairs = multiply_pairs(recipe, w[j], x);
                sum[i][j] = s == 0 ? pairs : _mm256_add_epi16(sum[i][j], pairs);
                KEEP(sum[i][j]);
            }
        }
    }
}

/* Sums of a group: weights [group/4, STRIP, 4] times n rows of activations. */
INLINE void dot_group(int n, struct recipe recipe, const uint8_t *u, const int8_t *q, size_t q_stride,
                      __m256i dot[TILE][VECTORS]) {
    const int8_t *rows[TILE];
    UNROLL for (int i = 0; i < n; i++) {
        rows[i] = q + (size_t)i * q_stride;
        __asm__("" : "+r"(rows[i])); /* one pointer a row, not one for each of its loads */
    }
    for (int c = 0; c < recipe.group; c += 4 * recipe.steps) {
        __m256i sum[TILE][VECTORS];
        add_steps(n, recipe, u + c * STRIP, rows, c, sum);
        UNROLL for (int i = 0; i < n; i++)
            UNROLL for (int j = 0; j < VECTORS; j++) {
                __m256i part = _mm256_madd_epi16(sum[i][j], _mm256_set1_epi16(1));
                dot[i][j] = c == 0 ? part : _mm256_add_epi32(dot[i][j], part);
            }
    }
}

/* -zero * sum(q), from that for zero = 128. */
INLINE __m256i zero_part(struct recipe recipe, const int32_t *offset) {
    return _mm256_srai_epi32(_mm256_set1_epi32(*offset), recipe.zero == 8 ? 4 : recipe.zero == 16 ? 3 : 2);
}

/* Adds to the sums the products of some groups: u [groups, group/4, STRIP, 4], d and m [groups, PANEL], n rows of x. */
INLINE void add_groups(int n, struct recipe recipe, int groups, struct panel p, struct act_view x,
                       __m256 sum[TILE][VECTORS]) {
    const size_t blocks = (size_t)x.blocks, per_block = (size_t)(ACT_BLOCK / recipe.group);
    const int32_t *offset = recipe.group == 16 ? x.half_offset : x.offset;
    for (size_t g = 0; g < (size_t)groups; g++) {
        __m256i dot[TILE][VECTORS];
        dot_group(n, recipe, p.u + g * (size_t)recipe.group * STRIP, x.q + g * (size_t)recipe.group, x.q_stride, dot);
        UNROLL for (size_t i = 0; i < (size_t)n; i++)
            UNROLL for (size_t j = 0; j < VECTORS; j++) {
                const size_t b = i * blocks + g / per_block, r = g * PANEL + 8 * j;
                if (recipe.zero > 0)
                    dot[i][j] = _mm256_add_epi32(dot[i][j], zero_part(recipe, offset + i * blocks * per_block + g));
                __m256 part = _mm256_mul_ps(_mm256_cvtepi32_ps(dot[i][j]), _mm256_load_ps(p.d + r));
                sum[i][j] = _mm256_fmadd_ps(part, _mm256_broadcast_ss(x.scale + b), sum[i][j]);
                if (recipe.zero == 0)
                    sum[i][j] = _mm256_fmadd_ps(_mm256_load_ps(p.m + r), _mm256_broadcast_ss(x.scaled_sum + b),
                                                sum[i][j]);
            }
    }
}

/* Part of a panel: columns [begin, end) of rows [first, first + rows), at most STRIP of which exist. */
struct strip {
    const struct panel *panel;
    int first, rows, cols, begin, end;
};

/* The piece of it in the columns from c on, which were unpacked together. */
INLINE struct panel strip_piece(const struct strip *s, int width, int group, int c) {
    struct panel p = *s->panel;
    p.u += c * PANEL + s->first * width;
    p.d += c / group * PANEL + s->first;
    p.m += c / group * PANEL + s->first;
    return p;
}

/* The view from a row and a column on. */
INLINE struct act_view view_from(struct act_view x, size_t row, int c) {
    const size_t block = row * (size_t)x.blocks + (size_t)(c / ACT_BLOCK);
    x.q += row * x.q_stride + (size_t)c;
    x.scale += block;
    x.scaled_sum += block;
    x.offset += block;
    x.half_offset += 2 * block;
    return x;
}

/* y[i][r] (+)= for n activation rows from `row` on and the strip's rows; y points at its first. */
INLINE void run_tile(int n, struct recipe recipe, const struct strip *s, const struct act_view *x, size_t row,
                     float *y, size_t y_stride, bool add) {
    __m256 sum[TILE][VECTORS];
    UNROLL for (int i = 0; i < n; i++)
        UNROLL for (int j = 0; j < VECTORS; j++) sum[i][j] = _mm256_setzero_ps();
    for (int c = s->begin; c < s->end; c += MAX_BLOCK) {
        const int width = s->cols - c < MAX_BLOCK ? s->cols - c : MAX_BLOCK;
        struct panel p = strip_piece(s, width, recipe.group, c);
        add_groups(n, recipe, width / recipe.group, p, view_from(*x, row, c), sum);
    }
    UNROLL for (int i = 0; i < n; i++)
        UNROLL for (int j = 0; j < VECTORS; j++) {
            float *out = y + (row + (size_t)i) * y_stride + 8 * j;
            if (add) sum[i][j] = _mm256_add_ps(sum[i][j], load_first(out, s->rows - 8 * j));
            store_first(out, s->rows - 8 * j, sum[i][j]);
        }
}

INLINE void gemm(struct recipe recipe, const struct weight *w, int begin, int end, const struct acts *a,
                 float *y, size_t y_stride, bool add, void *scratch) {
    const uint8_t shift = (uint8_t)(recipe.zero < 0 ? -quant_formats[w->type].zero : 0);
    const struct panel p = unpack_panel(w, begin, end, shift, interleave_strips, scratch);
    const struct act_view x = act_view(a);
    const size_t n = (size_t)a->n;
    for (int first = 0; first < end - begin; first += STRIP)
        for (int c = 0; c < w->cols; c += PASS) {
            const int stop = c + PASS < w->cols ? c + PASS : w->cols;
            const struct strip s = {&p, first, end - begin - first, w->cols, c, stop};
            float *out = y + begin + first;
            size_t i = 0;
            for (; i + TILE <= n; i += TILE) run_tile(TILE, recipe, &s, &x, i, out, y_stride, add || c);
            for (; i < n; i++) run_tile(1, recipe, &s, &x, i, out, y_stride, add || c);
        }
}

#define GEMM(name, ...)                                                                          \
    static void name(const struct weight *w, int begin, int end, const struct acts *a, float *y, \
                     size_t y_stride, bool add, void *scratch) {                                 \
        gemm((struct recipe){__VA_ARGS__}, w, begin, end, a, y, y_stride, add, scratch);         \
    }
