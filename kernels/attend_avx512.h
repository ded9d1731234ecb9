/* attend_avx512.h - the vectors of attend_simd.h on AVX-512. */
#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define OF_ISA(name) attend_##name##_avx512
#define LANES 16
#define KEYS 8     /* 8 x 3 sums, 3 rows and a broadcast in 32 registers */
#define CHANNELS_OF(R) 4

typedef __m512 vec;

#define v_zero _mm512_setzero_ps
#define v_set _mm512_set1_ps
#define v_load _mm512_loadu_ps
#define v_store _mm512_storeu_ps
#define v_add _mm512_add_ps
#define v_sub _mm512_sub_ps
#define v_mul _mm512_mul_ps
#define v_max _mm512_max_ps
#define v_fma _mm512_fmadd_ps
#define v_sum _mm512_reduce_add_ps
#define v_max_lane _mm512_reduce_max_ps

#include "attend_exp2.h"

static inline vec v_exp2(vec x) {
    vec n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return _mm512_scalef_ps(exp2_fraction(v_sub(x, n)), n);
}

static inline vec v_exp(vec x) { return v_exp2(v_mul(x, v_set(1.44269504f))); }

static inline vec v_below(vec x, vec index, vec limit) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(index, limit, _CMP_LT_OQ), v_set(-1e30f), x);
}

static inline void v_sum4(vec a, vec b, vec c, vec d, float *out) {
    vec ab = v_add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    vec cd = v_add(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    vec s = v_add(_mm512_shuffle_ps(ab, cd, _MM_SHUFFLE(1, 0, 1, 0)),
                  _mm512_shuffle_ps(ab, cd, _MM_SHUFFLE(3, 2, 3, 2)));
    __m256 h = _mm256_add_ps(_mm512_castps512_ps256(s), _mm512_extractf32x8_ps(s, 1));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1)));
}

static inline vec v_load_f16(const uint8_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}

static inline void v_store_f16(uint8_t *p, vec x) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

static inline vec v_set_f16(const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return _mm512_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(h)));
}

static inline vec v_load_i8(const uint8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}

static inline vec v_load_low4(const uint8_t *p) {
    __m512i codes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm512_cvtepi32_ps(_mm512_and_si512(codes, _mm512_set1_epi32(15)));
}

static inline vec v_load_high4(const uint8_t *p) {
    __m512i codes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm512_cvtepi32_ps(_mm512_srli_epi32(codes, 4));
}

static inline void v_transpose(vec x[LANES]) {
    vec y[LANES];
    for (int i = 0; i < LANES; i += 2) { /* pairs of rows: [0 0' 1 1'] [2 2' 3 3'] of every four columns */
        y[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
    }
    for (int i = 0; i < LANES; i += 4) { /* one column of four rows in each quarter */
        x[i] = _mm512_shuffle_ps(y[i], y[i + 2], _MM_SHUFFLE(1, 0, 1, 0));
        x[i + 1] = _mm512_shuffle_ps(y[i], y[i + 2], _MM_SHUFFLE(3, 2, 3, 2));
        x[i + 2] = _mm512_shuffle_ps(y[i + 1], y[i + 3], _MM_SHUFFLE(1, 0, 1, 0));
        x[i + 3] = _mm512_shuffle_ps(y[i + 1], y[i + 3], _MM_SHUFFLE(3, 2, 3, 2));
    }
    for (int i = 0; i < 4; i++) { /* columns i, i + 4, i + 8 and i + 12 from the four that hold them */
        vec a = _mm512_shuffle_f32x4(x[i], x[i + 4], 0x88), b = _mm512_shuffle_f32x4(x[i], x[i + 4], 0xdd);
        vec c = _mm512_shuffle_f32x4(x[i + 8], x[i + 12], 0x88);
        vec d = _mm512_shuffle_f32x4(x[i + 8], x[i + 12], 0xdd);
        y[i] = _mm512_shuffle_f32x4(a, c, 0x88);
        y[i + 8] = _mm512_shuffle_f32x4(a, c, 0xdd);
        y[i + 4] = _mm512_shuffle_f32x4(b, d, 0x88);
        y[i + 12] = _mm512_shuffle_f32x4(b, d, 0xdd);
    }
    for (int i = 0; i < LANES; i++) x[i] = y[i];
}
