/* sparse_avx512.c - without VNNI: sums of two products in 16 bits, of four in 32. */
#include <immintrin.h>

static inline __m512i dot4(__m512i sum, __m512i u, __m512i s) {
    __m512i pairs = _mm512_maddubs_epi16(u, s);
    return _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
}

#include "sparse_avx512.h"

const struct sparse_kernels sparse_avx512 = {
    .isa = "avx512", .reach = reach_simd, .count = count_simd, .at_least = at_least_simd,
};
