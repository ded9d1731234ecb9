/* sparse_avx2.c - sparse.h with vectors of 8. */
#include "attend_avx2.h"

typedef __m256i ivec;

#define v_reached(x, least) ((unsigned)_mm256_movemask_ps(_mm256_cmp_ps(x, least, _CMP_GE_OQ)))

#define i_zero _mm256_setzero_si256
#define i_load(p) _mm256_loadu_si256((const __m256i *)(p))
#define i_and _mm256_and_si256
#define i_add _mm256_add_epi32
#define i_bytes _mm256_set1_epi8
#define i_four _mm256_set1_epi32
#define i_shift _mm256_srli_epi16
#define i_float _mm256_cvtepi32_ps

static inline void v_store_i8(int32_t *to, vec x) {
    __m256i i = _mm256_cvtps_epi32(x);
    __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(i), _mm256_extracti128_si256(i, 1));
    _mm_storel_epi64((__m128i *)to, _mm_packs_epi16(words, words));
}

static inline ivec i_dot4(ivec sum, ivec u, ivec s) {
    return i_add(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(u, s), _mm256_set1_epi16(1)));
}

#include "sparse_simd.h"

const struct sparse_kernels sparse_avx2 = SPARSE_KERNELS("avx2");
