/* attend_pv_avx512vnni.h - weighted sums of q8_0 values, read as they are
 * stored, in integers: weights are 16 bits of what the largest can be among the
 * entries at hand, so that dpwssd adds up two entries at a time. */
#pragma once

#include "attend_qk_avx512vnni.h"

#define W_ONE 32767.0f /* the largest weight */

INLINE ints dot2(ints sum, __m512i a, __m512i b) { return (ints)_mm512_dpwssd_epi32((__m512i)sum, a, b); }

/* Weights p times the values' scales, of block b of a pair, as integers of 16 bits, those of two entries to a
 * lane; one[r] is what a 1 is worth. n is a multiple of 16. */
INLINE void weigh(int R, const struct entries *e, vec (*scale)[2], int b, int n, int32_t (*out)[ATTEND_BLOCK / 2],
                  float *one) {
    vec most = v_zero();
    for (int i = 0; i < n / LANES; i++) most = v_max(most, _mm512_abs_ps(scale[i][b]));
    float largest = v_max_lane(most);
    for (int r = 0; r < R; r++) {
        one[r] = largest * e->largest[r] / W_ONE;
        vec inverse = v_set(one[r] > 0 ? 1 / one[r] : 0);
        for (int i = 0; i < n / LANES; i++) {
            vec w = v_mul(v_mul(scale[i][b], inverse), v_load(e->p[r] + i * LANES));
            __m256i w16 = _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(w));
            _mm256_storeu_si256((__m256i *)(out[r] + i * LANES / 2), w16);
        }
    }
}

/* 32 channels of two values, in pairs of the one and the other: channels 0..7 and 16..23, then the rest. */
INLINE void load_two(const uint8_t *one, const uint8_t *other, __m512i out[2]) {
    __m256i a = _mm256_loadu_si256((const __m256i *)one), b = _mm256_loadu_si256((const __m256i *)other);
    out[0] = _mm512_cvtepi8_epi16(_mm256_unpacklo_epi8(a, b));
    out[1] = _mm512_cvtepi8_epi16(_mm256_unpackhi_epi8(a, b));
}

/* acc[r] = acc[r] * shrink[r] + sum of p[r][i] v_i, for the two blocks of channels from c on. */
INLINE void pv_pair(int R, int d, const struct entries *e, const float *shrink, float *const *acc, int c) {
    _Alignas(64) int32_t w[2][FEW][ATTEND_BLOCK / 2];
    _Alignas(64) uint32_t pairs[ATTEND_BLOCK];
    vec scale[ATTEND_BLOCK / LANES][2];
    float one[2][FEW];
    int padded = (e->n + LANES - 1) / LANES * LANES;
    copy_scales(e->v, padded, kv_scale_at(KV_Q8_0, d, c / KV_BLOCK), pairs);
    for (int i = 0; i < padded / LANES; i++) load_scales(pairs + i * LANES, scale[i]);
    for (int b = 0; b < 2; b++) weigh(R, e, scale, b, padded, w[b], one[b]);
    ints sum[FEW][4];
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int j = 0; j < 4; j++) sum[r][j] = (ints){0};
    for (int i = 0; i < padded; i += 2) {
        if (c == 0 && i % 8 == 0) prefetch_rows(e->v[i], e->ahead_v, 8 * kv_row_bytes(KV_Q8_0, d));
        UNROLL for (int b = 0; b < 2; b++) {
            __m512i v[2];
            int codes = c + b * KV_BLOCK;
            load_two(e->v[i] + codes, e->v[i + 1] + codes, v);
            UNROLL for (int r = 0; r < R; r++) {
                __m512i both = _mm512_set1_epi32(w[b][r][i / 2]);
                UNROLL for (int j = 0; j < 2; j++) sum[r][2 * b + j] = dot2(sum[r][2 * b + j], v[j], both);
            }
        }
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int j = 0; j < 4; j++) {
            __m512i low = (__m512i)sum[r][j / 2 * 2], high = (__m512i)sum[r][j / 2 * 2 + 1];
            __m512i half = _mm512_shuffle_i64x2(low, high, 0x44);
            if (j % 2) half = _mm512_shuffle_i64x2(low, high, 0xee);
            float *to = acc[r] + c + j * LANES;
            vec y = v_mul(_mm512_cvtepi32_ps(half), v_set(one[j / 2][r]));
            v_store(to, v_fma(v_load(to), v_set(shrink[r]), y));
        }
}

INLINE void pv_pairs(enum kv_type type, int R, int d, struct entries *e, const float *shrink, float *const *acc) {
    (void)type;
    for (int c = 0; c < d; c += 2 * KV_BLOCK) pv_pair(R, d, e, shrink, acc, c);
}

/* Types other than q8_0, and where blocks don't come in pairs, in float32. */
static void pv_i16(enum kv_type type, int R, struct entries *e, const float *shrink, float *const *acc) {
    if (type != KV_Q8_0 || e->d % (2 * KV_BLOCK)) pv_any(type, R, e, shrink, acc);
    else BY_ROWS(pv_pairs, KV_Q8_0, R, e->d, e, shrink, acc)
}
