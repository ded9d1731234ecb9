/* sparse_avx512vnni.c - with VNNI's dot products of four bytes. */
#include <immintrin.h>

#define dot4 _mm512_dpbusd_epi32

#include "sparse_avx512.h"

const struct sparse_kernels sparse_avx512vnni = {
    .isa = "avx512vnni", .reach = reach_simd, .count = count_simd, .at_least = at_least_simd,
};
