/* sparse_avx512.h - the vectors of sparse_simd.h on AVX-512, but for i_dot4(). */
#pragma once

#include "attend_avx512.h"

typedef __m512i ivec;

#define v_abs _mm512_abs_ps
#define v_reached(x, least) ((unsigned)_mm512_cmp_ps_mask(x, least, _CMP_GE_OQ))

#define i_zero _mm512_setzero_si512
#define i_load _mm512_loadu_si512
#define i_and _mm512_and_si512
#define i_add _mm512_add_epi32
#define i_bytes _mm512_set1_epi8
#define i_four _mm512_set1_epi32
#define i_shift _mm512_srli_epi16
#define i_float _mm512_cvtepi32_ps

static inline void v_store_i8(int32_t *to, vec x) {
    _mm_storeu_si128((__m128i *)to, _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(x)));
}
