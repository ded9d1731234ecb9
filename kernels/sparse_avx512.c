/* sparse_avx512.c - without VNNI: sums of two products in 16 bits, of four in 32. */
#include "sparse_avx512.h"

static inline ivec i_dot4(ivec sum, ivec u, ivec s) {
    return i_add(sum, _mm512_madd_epi16(_mm512_maddubs_epi16(u, s), _mm512_set1_epi16(1)));
}

#include "sparse_simd.h"

const struct sparse_kernels sparse_avx512 = SPARSE_KERNELS("avx512");
