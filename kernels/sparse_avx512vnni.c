/* sparse_avx512vnni.c - with VNNI's dot products of four bytes. */
#include "sparse_avx512.h"

#define i_dot4 _mm512_dpbusd_epi32

#include "sparse_simd.h"

const struct sparse_kernels sparse_avx512vnni = SPARSE_KERNELS("avx512vnni");
