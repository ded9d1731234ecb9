/* attend_pv_avx2.h - weighted sums of q8_0 values, read as they are stored, in
 * integers: the 256-bit twin of attend_pv_avx512vnni.h. Weights are 16 bits of
 * what the largest can be among the entries at hand. */
#pragma once

#include "attend_qk_avx2.h"

#define W_ONE 32767.0f /* the largest weight */
#define PART 16        /* channels that are summed up at a time */

/* The weights of up to ATTEND_BLOCK entries for two blocks of channels, those of two entries to a lane, and what a 1
 * is worth. */
struct weights {
    _Alignas(32) int32_t w[2][FEW][ATTEND_BLOCK / 2];
    float one[2][FEW];
};

/* e->p times the values' scales, which lie `at` bytes into a row. n is a multiple of 8. */
INLINE void weigh(int R, int n, const struct entries *e, size_t at, struct weights *out) {
    _Alignas(32) float scales[2][ATTEND_BLOCK];
    vec most[2] = {v_zero(), v_zero()};
    for (int i = 0; i < n; i += LANES) {
        vec scale[2];
        load_scales(&e->v[i], at, scale);
        UNROLL for (int b = 0; b < 2; b++) {
            most[b] = v_max(most[b], scale[b]);
            v_store(scales[b] + i, scale[b]);
        }
    }
    for (int b = 0; b < 2; b++)
        for (int r = 0; r < R; r++) {
            float one = v_max_lane(most[b]) * e->largest[r] * (1 / W_ONE);
            vec inverse = v_set(one > 0 ? 1 / one : 0);
            for (int i = 0; i < n; i += LANES) {
                vec weight = v_mul(v_mul(v_load(scales[b] + i), inverse), v_load(e->p[r] + i));
                __m256i w = _mm256_cvtps_epi32(weight);
                __m256i w16 = _mm256_permute4x64_epi64(_mm256_packs_epi32(w, w), 0x08);
                _mm_store_si128((__m128i *)(out->w[b][r] + i / 2), _mm256_castsi256_si128(w16));
            }
            out->one[b][r] = one;
        }
}

/* PART channels of two values, in pairs of the one and the other: channels 0..3 and 8..11, then the rest. */
INLINE void load_two(const uint8_t *one, const uint8_t *other, __m256i out[2]) {
    __m256i a = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)one));
    __m256i b = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)other));
    out[0] = _mm256_unpacklo_epi16(a, b);
    out[1] = _mm256_unpackhi_epi16(a, b);
}

/* acc[r] = acc[r] * shrink[r] + sum of p[r][i] v_i, for PART channels from c on. The `first` part
 * prefetches later entries. */
INLINE void pv_part(bool first, int R, int d, int n, const struct entries *e, const struct weights *w, int c) {
    const size_t row_bytes = kv_row_bytes(KV_Q8_0, d);
    const int b = c / KV_BLOCK % 2;
    __m256i sum[FEW][2];
    UNROLL for (int r = 0; r < R; r++) sum[r][0] = sum[r][1] = _mm256_setzero_si256();
    for (size_t two = 0; two < (size_t)n / 2; two++) {
        const uint8_t *const *rows = e->v + 2 * two;
        __m256i v[2];
        if (first) prefetch_part(soon_after(rows[0], e->ahead_v), 0, 2 * row_bytes);
        load_two(rows[0] + c, rows[1] + c, v);
        UNROLL for (int r = 0; r < R; r++) {
            __m256i both = _mm256_set1_epi32(w->w[b][r][two]);
            UNROLL for (int j = 0; j < 2; j++)
                sum[r][j] = _mm256_add_epi32(sum[r][j], _mm256_madd_epi16(v[j], both));
        }
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int j = 0; j < 2; j++) {
            __m256i eight = j ? _mm256_permute2x128_si256(sum[r][0], sum[r][1], 0x31)
                              : _mm256_permute2x128_si256(sum[r][0], sum[r][1], 0x20);
            float *to = e->acc[r] + c + j * LANES;
            vec y = v_mul(_mm256_cvtepi32_ps(eight), v_set(w->one[b][r]));
            v_store(to, v_fma(v_load(to), v_set(e->shrink[r]), y));
        }
}

INLINE void pv_blocks(enum kv_type type, int R, int d, int n, struct entries *e) {
    (void)type;
    struct weights w;
    n = whole_vectors(n);
    for (int c = 0; c < d; c += PART) {
        if (c % (2 * KV_BLOCK) == 0) weigh(R, n, e, kv_scale_at(KV_Q8_0, d, c / KV_BLOCK), &w);
        if (c == 0) pv_part(true, R, d, n, e, &w, c);
        else pv_part(false, R, d, n, e, &w, c);
    }
}

FOR_SIZES(pv_q8, pv_blocks, KV_Q8_0)
