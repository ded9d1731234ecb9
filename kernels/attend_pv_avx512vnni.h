/* attend_pv_avx512vnni.h - weighted sums of q8_0 values, read as they are
 * stored, in integers: weights are 16 bits of what the largest can be among the
 * entries at hand, so that dpwssd adds up two entries at a time. */
#pragma once

#include "attend_qk_avx512vnni.h"

#define W_ONE 32767.0f /* the largest weight */

INLINE ints dot2(ints sum, __m512i a, __m512i b) { return (ints)_mm512_dpwssd_epi32((__m512i)sum, a, b); }

/* The weights of up to ATTEND_BLOCK entries for two blocks of channels, those of two entries to a lane, and what a 1
 * is worth. */
struct weights {
    _Alignas(64) int32_t w[2][FEW][ATTEND_BLOCK / 2];
    float one[2][FEW];
};

/* The largest of all first scales of pairs, and that of all second ones. None is below 0, so that f16 compare like
 * integers. */
INLINE __m128 largest_scales(const __m512i pairs[ATTEND_BLOCK / LANES]) {
    __m512i x = _mm512_max_epi16(_mm512_max_epi16(pairs[0], pairs[1]), _mm512_max_epi16(pairs[2], pairs[3]));
    __m256i y = _mm256_max_epi16(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
    __m128i z = _mm_max_epi16(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1));
    z = _mm_max_epi16(z, _mm_shuffle_epi32(z, 0x4e));
    return _mm_cvtph_ps(_mm_max_epi16(z, _mm_shuffle_epi32(z, 0xb1)));
}

/* e->p times the values' scales of a block and the next. */
INLINE void weigh(struct pass pass, const struct entries *e, int block, struct weights *out) {
    const uint8_t *first = e->v + kv_scale_at(KV_Q8_0, pass.d, block);
    __m512i pairs[ATTEND_BLOCK / LANES];
    vec scale[ATTEND_BLOCK / LANES][2];
    float largest[4];
    for (int i = 0; i < ATTEND_BLOCK / LANES; i++) {
        pairs[i] = i * LANES < pass.n ? load_scales(pass, e, first, i * LANES) : _mm512_setzero_si512();
        split_scales(pairs[i], scale[i]);
    }
    _mm_storeu_ps(largest, largest_scales(pairs));
    for (int r = 0; r < pass.R; r++)
        for (int b = 0; b < 2; b++) {
            float one = largest[b] * e->largest[r] * (1 / W_ONE);
            vec inverse = v_set(one > 0 ? 1 / one : 0);
            for (int i = 0; i < pass.n / LANES; i++) {
                vec w = v_mul(v_mul(scale[i][b], inverse), v_load(e->p[r] + i * LANES));
                __m256i w16 = _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(w));
                _mm256_store_si256((__m256i *)(out->w[b][r] + i * LANES / 2), w16);
            }
            out->one[b][r] = one;
        }
}

/* 32 channels of two values, in pairs of the one and the other: channels 0..7 and 16..23, then the rest. */
INLINE void load_two(const uint8_t *one, const uint8_t *other, __m512i out[2]) {
    __m256i a = _mm256_loadu_si256((const __m256i *)one), b = _mm256_loadu_si256((const __m256i *)other);
    out[0] = _mm512_cvtepi8_epi16(_mm256_unpacklo_epi8(a, b));
    out[1] = _mm512_cvtepi8_epi16(_mm256_unpackhi_epi8(a, b));
}

#define STEP 8 /* entries, for prefetching whole lines */

/* acc[r] = acc[r] * shrink[r] + sum of p[r][i] v_i, for the two blocks of channels from c on. */
INLINE void pv_pair(struct pass pass, const struct entries *e, int c) {
    struct weights w;
    weigh(pass, e, c / KV_BLOCK, &w);
    ints sum[FEW][4];
    UNROLL for (int r = 0; r < pass.R; r++)
        UNROLL for (int j = 0; j < 4; j++) sum[r][j] = (ints){0};
    for (int i = 0; i < pass.n; i += STEP) {
        struct soon soon = soon_with_values(pass, e, c, 2 * KV_BLOCK, i);
        UNROLL for (int two = 0; two < STEP; two += 2) {
            const uint8_t *one = row_at(pass, e, e->v + c, i, two), *other = row_at(pass, e, e->v + c, i, two + 1);
            prefetch_part(pass, soon, (size_t)two * soon.stride, (size_t)(two + 2) * soon.stride);
            UNROLL for (int b = 0; b < 2; b++) {
                __m512i v[2];
                load_two(one + b * KV_BLOCK, other + b * KV_BLOCK, v);
                UNROLL for (int r = 0; r < pass.R; r++) {
                    __m512i both = _mm512_set1_epi32(w.w[b][r][(i + two) / 2]);
                    UNROLL for (int j = 0; j < 2; j++) sum[r][2 * b + j] = dot2(sum[r][2 * b + j], v[j], both);
                }
            }
        }
    }
    UNROLL for (int r = 0; r < pass.R; r++)
        UNROLL for (int j = 0; j < 4; j++) {
            __m512i low = (__m512i)sum[r][j / 2 * 2], high = (__m512i)sum[r][j / 2 * 2 + 1];
            __m512i half = _mm512_shuffle_i64x2(low, high, 0x44);
            if (j % 2) half = _mm512_shuffle_i64x2(low, high, 0xee);
            float *to = e->acc[r] + c + j * LANES;
            vec y = v_mul(_mm512_cvtepi32_ps(half), v_set(w.one[j / 2][r]));
            v_store(to, v_fma(v_load(to), v_set(e->shrink[r]), y));
        }
}

INLINE void pv_pairs(struct pass pass, struct entries *e) {
    for (int c = 0; c < pass.d; c += 2 * KV_BLOCK) pv_pair(pass, e, c);
}

FOR_BLOCKS(pv_q8, pv_pairs, KV_Q8_0)
