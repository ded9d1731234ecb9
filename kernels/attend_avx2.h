/* attend_avx2.h - vectors of 8 floats for attend_simd.h. */
#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "simd_avx2.h"

#define OF_ISA(name) attend_##name##_avx2
#define LANES 8
#define KEYS 4     /* 4 x 3 sums, 3 rows and a broadcast in 16 registers */
#define CHANNELS_OF(R) ((R) > 3 ? 2 : 4)

typedef __m256 vec;

#define v_zero _mm256_setzero_ps
#define v_set _mm256_set1_ps
#define v_load _mm256_loadu_ps
#define v_store _mm256_storeu_ps
#define v_add _mm256_add_ps
#define v_sub _mm256_sub_ps
#define v_mul _mm256_mul_ps
#define v_max _mm256_max_ps
#define v_fma _mm256_fmadd_ps
#define v_abs(x) _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x)
#define v_sum sum_floats
#define v_max_lane largest_float

#include "attend_exp2.h"

/* Below -87 the result would leave the normal range. */
static inline vec v_exp(vec x) {
    vec t = v_mul(v_max(x, v_set(-88)), v_set(1.44269504f));
    vec n = _mm256_round_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    vec y = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(exp2_fraction(v_sub(t, n))), exponent));
    return _mm256_and_ps(y, _mm256_cmp_ps(x, v_set(-87), _CMP_GE_OQ));
}

static inline vec v_below(vec x, vec index, vec limit) {
    return _mm256_blendv_ps(v_set(-1e30f), x, _mm256_cmp_ps(index, limit, _CMP_LT_OQ));
}

static inline void v_sum4(vec a, vec b, vec c, vec d, float *out) {
    vec s = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1)));
}

static inline vec v_load_f16(const uint8_t *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}

static inline void v_store_f16(uint8_t *p, vec x) {
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

static inline vec v_set_f16(const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return _mm256_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(h)));
}

static inline vec v_load_i8(const uint8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}

static inline vec v_load_low4(const uint8_t *p) {
    __m256i codes = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
    return _mm256_cvtepi32_ps(_mm256_and_si256(codes, _mm256_set1_epi32(15)));
}

static inline vec v_load_high4(const uint8_t *p) {
    __m256i codes = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
    return _mm256_cvtepi32_ps(_mm256_srli_epi32(codes, 4));
}

static inline void v_transpose(vec x[LANES]) {
    vec y[LANES];
    for (int i = 0; i < LANES; i += 2) {
        y[i] = _mm256_unpacklo_ps(x[i], x[i + 1]);
        y[i + 1] = _mm256_unpackhi_ps(x[i], x[i + 1]);
    }
    for (int i = 0; i < LANES; i += 4) { /* one column of four rows in each half */
        x[i] = _mm256_shuffle_ps(y[i], y[i + 2], _MM_SHUFFLE(1, 0, 1, 0));
        x[i + 1] = _mm256_shuffle_ps(y[i], y[i + 2], _MM_SHUFFLE(3, 2, 3, 2));
        x[i + 2] = _mm256_shuffle_ps(y[i + 1], y[i + 3], _MM_SHUFFLE(1, 0, 1, 0));
        x[i + 3] = _mm256_shuffle_ps(y[i + 1], y[i + 3], _MM_SHUFFLE(3, 2, 3, 2));
    }
    for (int i = 0; i < 4; i++) {
        y[i] = _mm256_permute2f128_ps(x[i], x[i + 4], 0x20);
        y[i + 4] = _mm256_permute2f128_ps(x[i], x[i + 4], 0x31);
    }
    for (int i = 0; i < LANES; i++) x[i] = y[i];
}
