/* sparse_avx512.h - sparse.h with vectors of 16; the including file defines
 * dot4(sum, u, s): sum += u . s for four unsigned and signed bytes a lane. The
 * plain C twin is in sparse.c. */
#pragma once

#include "attend_avx512.h"
#include "sparse_internal.h"

#define UNROLL _Pragma("GCC unroll 8") /* early enough to keep arrays of vectors in registers */
#define MAX_ROWS 4 /* queries that share one reading of a group */

/* A query as 8-bit weights of the codes, four channels a lane. */
struct weights {
    int32_t low[KV_MAX_DIM / 4], high[KV_MAX_DIM / 4];
    float offset, scale;
};

static inline void store_bytes(int32_t *to, vec x) {
    _mm_storeu_si128((__m128i *)to, _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(x)));
}

static void page_weights(int d, const struct page_group *g, const float *q, struct weights *w) {
    vec low[KV_MAX_DIM / LANES], high[KV_MAX_DIM / LANES], most = v_zero(), offset = v_zero();
    for (int c = 0; c < g->width; c += LANES) {
        __mmask16 inside = d - c >= LANES ? 0xffff : (__mmask16)((1 << (d - c)) - 1);
        vec x = _mm512_maskz_loadu_ps(inside, q + c), step = v_mul(v_load(g->step + c), v_set(0.5f));
        vec spread = v_mul(_mm512_abs_ps(x), v_set(PAGE_REACH));
        low[c / LANES] = v_mul(v_sub(x, spread), step);
        high[c / LANES] = v_mul(v_add(x, spread), step);
        most = v_max(most, v_max(_mm512_abs_ps(low[c / LANES]), _mm512_abs_ps(high[c / LANES])));
        offset = v_fma(x, v_load(g->base + c), offset);
    }
    float top = v_max_lane(most);
    vec inverse = v_set(top > 0 ? 127 / top : 0);
    w->offset = v_sum(offset);
    w->scale = top / 127;
    for (int c = 0; c < g->width; c += LANES) {
        store_bytes(w->low + c / 4, v_mul(low[c / LANES], inverse));
        store_bytes(w->high + c / 4, v_mul(high[c / LANES], inverse));
    }
}

/* All pages of a group for R queries. */
static inline __attribute__((always_inline)) void reach_rows(const struct page_group *g, const struct weights *w, int R,
                                                             float *reach, size_t stride) {
    const uint8_t *codes = g->codes;
    size_t group_bytes = (size_t)g->width * (PAGE_GROUP / 2 + 2 * sizeof(float));
    const __m512i mask = _mm512_set1_epi8(PAGE_CODES);
    for (int p = 0; p < PAGE_GROUP; p += PAGE_LANES) {
        __m512i sum[MAX_ROWS][2];
        UNROLL for (int r = 0; r < R; r++) sum[r][0] = sum[r][1] = _mm512_setzero_si512();
        for (int quad = 0; quad < g->width / 4; quad += 2, codes += 64) {
            __m512i all = _mm512_loadu_si512(codes);
            __builtin_prefetch(codes + group_bytes); /* of the next group, which is likely to follow */
            UNROLL for (int j = 0; j < 2; j++) {
                __m512i low = _mm512_and_si512(_mm512_srli_epi16(all, 4 * (unsigned)j), mask);
                __m512i high = _mm512_and_si512(_mm512_srli_epi16(all, 4 * (unsigned)j + 2), mask);
                UNROLL for (int r = 0; r < R; r++) {
                    sum[r][0] = dot4(sum[r][0], low, _mm512_set1_epi32(w[r].low[quad + j]));
                    sum[r][1] = dot4(sum[r][1], high, _mm512_set1_epi32(w[r].high[quad + j]));
                }
            }
        }
        UNROLL for (int r = 0; r < R; r++) {
            vec x = _mm512_cvtepi32_ps(_mm512_add_epi32(sum[r][0], sum[r][1]));
            v_store(reach + (size_t)r * stride + p, v_add(v_set(w[r].offset), v_mul(v_set(w[r].scale), x)));
        }
    }
}

static void reach_simd(int d, const void *group, const float *q, size_t q_stride, int m, float *reach, size_t stride) {
    struct page_group g = page_group(d, group);
    for (int r = 0; r < m; r += MAX_ROWS) {
        struct weights w[MAX_ROWS];
        int R = m - r < MAX_ROWS ? m - r : MAX_ROWS;
        float *out = reach + (size_t)r * stride;
        for (int j = 0; j < R; j++) page_weights(d, &g, q + (size_t)(r + j) * q_stride, &w[j]);
        switch (R) {
        case 1: reach_rows(&g, w, 1, out, stride); break;
        case 2: reach_rows(&g, w, 2, out, stride); break;
        case 3: reach_rows(&g, w, 3, out, stride); break;
        default: reach_rows(&g, w, 4, out, stride); break;
        }
    }
}

/* One bit for each of up to 16 values that is >= least. */
static inline unsigned found_at(const float *x, int n, vec least) {
    if (n >= LANES) return _mm512_cmp_ps_mask(v_load(x), least, _CMP_GE_OQ);
    __mmask16 inside = (__mmask16)((1 << n) - 1);
    return _mm512_mask_cmp_ps_mask(inside, _mm512_maskz_loadu_ps(inside, x), least, _CMP_GE_OQ);
}

static int count_simd(const float *x, int n, float least) {
    __m512i count = _mm512_setzero_si512(), one = _mm512_set1_epi32(1);
    for (int i = 0; i < n; i += LANES)
        count = _mm512_mask_add_epi32(count, (__mmask16)found_at(x + i, n - i, v_set(least)), count, one);
    return _mm512_reduce_add_epi32(count);
}

static int at_least_simd(const float *x, int n, float least, int *index) {
    int count = 0;
    for (int i = 0; i < n; i += LANES)
        for (unsigned found = found_at(x + i, n - i, v_set(least)); found; found &= found - 1)
            index[count++] = i + __builtin_ctz(found);
    return count;
}
