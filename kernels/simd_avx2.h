/* simd_avx2.h - what the 256-bit kernels have in common. */
#pragma once

#include <immintrin.h>
#include <stdbool.h>
#include <stdint.h>

#include "inline.h"

/* All ones in the first n of eight elements. */
INLINE __m256i first_lanes(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0));
}

/* The first n of eight floats, or all; the others are zero, or stay as they are. AMD's CPUs take ten cycles and more
 * for a masked store, so that only what has to be is. */
INLINE __m256 load_first(const float *p, int n) {
    return n < 8 ? _mm256_maskload_ps(p, first_lanes(n)) : _mm256_loadu_ps(p);
}

INLINE void store_first(float *p, int n, __m256 x) {
    if (n < 8) _mm256_maskstore_ps(p, first_lanes(n), x);
    else _mm256_storeu_ps(p, x);
}

INLINE float sum_floats(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

INLINE float largest_float(__m256 v) {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

/* Rows of 32-bit elements for columns. */
INLINE void transpose_8x8(__m256i x[8]) {
    __m256i y[8];
    for (int i = 0; i < 8; i += 2) {
        y[i] = _mm256_unpacklo_epi32(x[i], x[i + 1]);
        y[i + 1] = _mm256_unpackhi_epi32(x[i], x[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) { /* one column of four rows in each half */
        x[i] = _mm256_unpacklo_epi64(y[i], y[i + 2]);
        x[i + 1] = _mm256_unpackhi_epi64(y[i], y[i + 2]);
        x[i + 2] = _mm256_unpacklo_epi64(y[i + 1], y[i + 3]);
        x[i + 3] = _mm256_unpackhi_epi64(y[i + 1], y[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        y[i] = _mm256_permute2x128_si256(x[i], x[i + 4], 0x20);
        y[i + 4] = _mm256_permute2x128_si256(x[i], x[i + 4], 0x31);
    }
    for (int i = 0; i < 8; i++) x[i] = y[i];
}

/* Keeps a vector in a register: gcc would load what it could keep, and add up in a tree, which spills. */
#define KEEP(x) __asm__("" : "+x"(x))

/* sum += x, in the register that holds the sum: of many sums in a loop, gcc would move some about. */
#define ADD_32(sum, x) __asm__("vpaddd %1, %0, %0" : "+x"(sum) : "x"(x))
