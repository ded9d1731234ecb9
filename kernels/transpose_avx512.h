/* transpose_avx512.h - 16 x 16 elements of 32 bits. */
#pragma once

#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))

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
        __m512i even0 = _mm512_shuffle_i32x4(a[j], a[4 + j], 0x88), odd0 = _mm512_shuffle_i32x4(a[j], a[4 + j], 0xdd);
        __m512i even1 = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0x88);
        __m512i odd1 = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0xdd);
        out[j] = _mm512_shuffle_i32x4(even0, even1, 0x88);
        out[4 + j] = _mm512_shuffle_i32x4(odd0, odd1, 0x88);
        out[8 + j] = _mm512_shuffle_i32x4(even0, even1, 0xdd);
        out[12 + j] = _mm512_shuffle_i32x4(odd0, odd1, 0xdd);
    }
}
