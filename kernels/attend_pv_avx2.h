/* attend_pv_avx2.h - weighted sums of q8_0 values, read as they are stored, in
 * integers: the 256-bit twin of attend_pv_avx512vnni.h. Weights are 16 bits of
 * what the largest can be among the entries at hand. */
#pragma once

#include "attend_qk_avx2.h"

#define W_ONE 32767.0f /* the largest weight */
#define PART 16        /* channels that are unpacked at a time */
#define STEP 4         /* entries */

/* The weights of up to ATTEND_BLOCK entries for two blocks of channels, those of two entries to a lane, and what a 1
 * is worth. */
struct weights {
    _Alignas(32) int32_t w[2][FEW][ATTEND_BLOCK / 2];
    float one[2][FEW];
};

/* The largest of all first scales of pairs in lanes, and that of all second ones. None is below 0, so that f16 compare
 * like integers. */
INLINE __m128 largest_scales(__m256i pairs) {
    __m128i x = _mm_max_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
    x = _mm_max_epi16(x, _mm_shuffle_epi32(x, 0x4e));
    return _mm_cvtph_ps(_mm_max_epi16(x, _mm_shuffle_epi32(x, 0xb1)));
}

/* e->p times the values' scales of blocks b and b + 1. */
INLINE void weigh(struct pass pass, const struct entries *e, int b, struct weights *out) {
    const uint8_t *first = e->v + kv_scale_at(KV_Q8_0, pass.d, b);
    _Alignas(32) float scales[2][ATTEND_BLOCK];
    float largest[4];
    __m256i most = _mm256_setzero_si256();
    for (int i = 0; i < pass.n; i += LANES) {
        __m256i pairs = load_scales(pass, e, first, i);
        vec scale[2];
        split_scales(pairs, scale);
        most = _mm256_max_epi16(most, pairs);
        UNROLL for (int j = 0; j < 2; j++) v_store(scales[j] + i, scale[j]);
    }
    _mm_storeu_ps(largest, largest_scales(most));
    for (int j = 0; j < 2; j++)
        for (int r = 0; r < pass.R; r++) {
            float one = largest[j] * e->largest[r] * (1 / W_ONE);
            vec inverse = v_set(one > 0 ? 1 / one : 0);
            int32_t *pairs = out->w[j][r];
            for (int i = 0; i < pass.n; i += 2 * LANES, pairs += LANES) {
                __m256i w[2];
                UNROLL for (int x = 0; x < 2; x++) {
                    vec scale = v_mul(v_load(scales[j] + i + x * LANES), inverse);
                    w[x] = _mm256_cvtps_epi32(v_mul(scale, v_load(e->p[r] + i + x * LANES)));
                }
                __m256i in_order = _mm256_permute4x64_epi64(_mm256_packs_epi32(w[0], w[1]), 0xd8);
                _mm256_store_si256((__m256i *)pairs, in_order);
            }
            out->one[j][r] = one;
        }
}

/* PART channels of two values, in pairs of the one and the other: channels 0..3 and 8..11, then the rest. */
INLINE void load_two(const uint8_t *one, const uint8_t *other, __m256i out[2]) {
    __m256i a = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)one));
    __m256i b = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)other));
    out[0] = _mm256_unpacklo_epi16(a, b);
    out[1] = _mm256_unpackhi_epi16(a, b);
}

/* acc[r] = acc[r] * shrink[r] + sum of p[r][i] v_i, for `parts` times PART channels from c on. */
INLINE void pv_parts(struct pass pass, int parts, const struct entries *e, const struct weights *w, int c) {
    const int b = c / KV_BLOCK % 2;
    __m256i sum[FEW][4];
    UNROLL for (int r = 0; r < pass.R; r++)
        UNROLL for (int j = 0; j < 2 * parts; j++) sum[r][j] = _mm256_setzero_si256();
    const int32_t *pairs = w->w[b][0];
    for (int i = 0; i < pass.n; i += STEP, pairs += STEP / 2) {
        struct soon soon = soon_with_values(pass, e, c, parts * PART, i);
        UNROLL for (int two = 0; two < STEP; two += 2) {
            const uint8_t *one = row_at(pass, e, e->v + c, i, two), *other = row_at(pass, e, e->v + c, i, two + 1);
            prefetch_part(pass, soon, (size_t)two * soon.stride, (size_t)(two + 2) * soon.stride);
            const int32_t *weight = pairs + two / 2;
            UNROLL for (int part = 0; part < parts; part++) {
                __asm__("" : "+r"(weight)); /* read again for each part: kept, they would push sums out of registers */
                __m256i v[2];
                load_two(one + part * PART, other + part * PART, v);
                UNROLL for (int r = 0; r < pass.R; r++) {
                    __m256i both = _mm256_set1_epi32(weight[r * (ATTEND_BLOCK / 2)]);
                    UNROLL for (int j = 0; j < 2; j++) ADD_32(sum[r][2 * part + j], _mm256_madd_epi16(v[j], both));
                }
            }
        }
    }
    UNROLL for (int r = 0; r < pass.R; r++)
        UNROLL for (int j = 0; j < 2 * parts; j++) {
            const __m256i low = sum[r][j & ~1], high = sum[r][j | 1];
            __m256i eight = j % 2 ? _mm256_permute2x128_si256(low, high, 0x31)
                                  : _mm256_permute2x128_si256(low, high, 0x20);
            float *to = e->acc[r] + c + j * LANES;
            vec y = v_mul(_mm256_cvtepi32_ps(eight), v_set(w->one[b][r]));
            v_store(to, v_fma(v_load(to), v_set(e->shrink[r]), y));
        }
}

INLINE void pv_blocks(struct pass pass, struct entries *e) {
    struct weights w;
    const int parts = pass.R < 4 ? 2 : 1; /* their sums fit 16 registers */
    for (int c = 0; c < pass.d; c += parts * PART) {
        if (c % (2 * KV_BLOCK) == 0) weigh(pass, e, c / KV_BLOCK, &w);
        pv_parts(pass, parts, e, &w, c);
    }
}

FOR_SIZES(pv_q8, pv_blocks, KV_Q8_0)
