/* simd_avx512.h - what the 512-bit kernels have in common. */
#pragma once

#include <immintrin.h>
#include <stdbool.h>
#include <stdint.h>

#include "inline.h"

INLINE __mmask16 first_lanes(int n) { return (__mmask16)(n < 16 ? (1 << n) - 1 : 0xffff); }

/* The sum of each of four vectors, plus elements r, r + 4, r + 8 and r + 12 of
 * `lanes` to sum r. */
INLINE __m128 sum_four(const __m512 v[4], __m512 lanes) {
    __m512 s01 = _mm512_add_ps(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]));
    __m512 s23 = _mm512_add_ps(_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3]));
    __m512d lo = _mm512_unpacklo_pd(_mm512_castps_pd(s01), _mm512_castps_pd(s23));
    __m512d hi = _mm512_unpackhi_pd(_mm512_castps_pd(s01), _mm512_castps_pd(s23));
    __m512 s = _mm512_add_ps(lanes, _mm512_add_ps(_mm512_castpd_ps(lo), _mm512_castpd_ps(hi)));
    __m256 t = _mm256_add_ps(_mm512_castps512_ps256(s), _mm512_extractf32x8_ps(s, 1));
    return _mm_add_ps(_mm256_castps256_ps128(t), _mm256_extractf128_ps(t, 1));
}

INLINE void store_four(float *y, __m128 sum, int rows, bool add) { /* the first `rows` of them */
    __mmask8 mask = (__mmask8)((1 << rows) - 1);
    if (add) sum = _mm_add_ps(sum, _mm_maskz_loadu_ps(mask, y));
    _mm_mask_storeu_ps(y, mask, sum);
}

/* Element j of out[i] is element i of in[j]. */
INLINE void transpose_16x16(const __m512i in[16], __m512i out[16]) {
    __m512i a[16], b[16];
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_epi32(in[i], in[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(in[i], in[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            a[i + 2 * j] = _mm512_unpacklo_epi64(b[i + j], b[i + j + 2]);
            a[i + 2 * j + 1] = _mm512_unpackhi_epi64(b[i + j], b[i + j + 2]);
        }
    /* Lane l of a[4*i + j] holds element 4*l + j of in[4*i] .. in[4*i + 3]. */
    for (int j = 0; j < 4; j++) {
        __m512i even0 = _mm512_shuffle_i32x4(a[j], a[4 + j], 0x88),
                odd0 = _mm512_shuffle_i32x4(a[j], a[4 + j], 0xdd);
        __m512i even1 = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0x88);
        __m512i odd1 = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0xdd);
        out[j] = _mm512_shuffle_i32x4(even0, even1, 0x88);
        out[4 + j] = _mm512_shuffle_i32x4(odd0, odd1, 0x88);
        out[8 + j] = _mm512_shuffle_i32x4(even0, even1, 0xdd);
        out[12 + j] = _mm512_shuffle_i32x4(odd0, odd1, 0xdd);
    }
}
