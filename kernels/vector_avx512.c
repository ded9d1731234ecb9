/* vector_avx512.c - float32 vectors and activation quantisation in 512 bits. */
#include <immintrin.h>

#include "simd.h"
#include "simd_avx512.h"

/* e^x to about one unit in the last place: 2^n times a polynomial in the rest
 * (the coefficients are those of Cephes' expf). */
static __m512 exp_ps(__m512 x) {
    x = _mm512_min_ps(_mm512_set1_ps(89), _mm512_max_ps(_mm512_set1_ps(-104), x));
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1)));
    return _mm512_scalef_ps(p, n);
}

void silu_mul_avx512(float *out, const float *gate, const float *up, int n) {
    for (int i = 0; i < n; i += 16) {
        __mmask16 mask = first_lanes(n - i);
        __m512 g = _mm512_maskz_loadu_ps(mask, gate + i);
        __m512 e = exp_ps(_mm512_sub_ps(_mm512_setzero_ps(), g));
        __m512 silu = _mm512_div_ps(g, _mm512_add_ps(_mm512_set1_ps(1), e));
        _mm512_mask_storeu_ps(out + i, mask, _mm512_mul_ps(silu, _mm512_maskz_loadu_ps(mask, up + i)));
    }
}

void vec_add_avx512(float *x, const float *y, int n) {
    for (int i = 0; i < n; i += 16) {
        __mmask16 mask = first_lanes(n - i);
        __m512 sum = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, x + i), _mm512_maskz_loadu_ps(mask, y + i));
        _mm512_mask_storeu_ps(x + i, mask, sum);
    }
}

void rmsnorm_avx512(float *out, const float *x, const float *weight, int n, float eps) {
    __m512 sum0 = _mm512_setzero_ps(), sum1 = sum0;
    int i = 0;
    for (; i + 32 <= n; i += 32) {
        __m512 a = _mm512_loadu_ps(x + i), b = _mm512_loadu_ps(x + i + 16);
        sum0 = _mm512_fmadd_ps(a, a, sum0);
        sum1 = _mm512_fmadd_ps(b, b, sum1);
    }
    for (; i < n; i += 16) {
        __m512 a = _mm512_maskz_loadu_ps(first_lanes(n - i), x + i);
        sum0 = _mm512_fmadd_ps(a, a, sum0);
    }
    float mean = _mm512_reduce_add_ps(_mm512_add_ps(sum0, sum1)) / (float)n;
    __m512 scale = _mm512_set1_ps(1 / sqrtf(mean + eps));
    for (i = 0; i < n; i += 16) {
        __mmask16 mask = first_lanes(n - i);
        __m512 scaled = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + i), scale);
        _mm512_mask_storeu_ps(out + i, mask, _mm512_mul_ps(scaled, _mm512_maskz_loadu_ps(mask, weight + i)));
    }
}

/* The largest element of each of four vectors. */
static __m128 max_four(const __m512 v[4]) {
    __m512 s01 = _mm512_max_ps(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]));
    __m512 s23 = _mm512_max_ps(_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3]));
    __m512d lo = _mm512_unpacklo_pd(_mm512_castps_pd(s01), _mm512_castps_pd(s23));
    __m512d hi = _mm512_unpackhi_pd(_mm512_castps_pd(s01), _mm512_castps_pd(s23));
    __m512 s = _mm512_max_ps(_mm512_castpd_ps(lo), _mm512_castpd_ps(hi));
    __m256 t = _mm256_max_ps(_mm512_castps512_ps256(s), _mm512_extractf32x8_ps(s, 1));
    return _mm_max_ps(_mm256_castps256_ps128(t), _mm256_extractf128_ps(t, 1));
}

/* In every 32 bits, the sum of the 16 bytes of its lane. */
static __m512i sum_lanes(__m512i q) {
    __m512i s = _mm512_madd_epi16(_mm512_maddubs_epi16(_mm512_set1_epi8(1), q), _mm512_set1_epi16(1));
    s = _mm512_add_epi32(s, _mm512_shuffle_epi32(s, 0xb1));
    return _mm512_add_epi32(s, _mm512_shuffle_epi32(s, 0x4e));
}

/* Four vectors of 32-bit integers from -128 to 127 as bytes. (A store of each, to be read as one vector for the
 * sums, would have the reader wait for the stores.) */
static __m512i pack_bytes(const __m512i v[4]) {
    const __m512i in_order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
    __m512i bytes = _mm512_packs_epi16(_mm512_packs_epi32(v[0], v[1]), _mm512_packs_epi32(v[2], v[3]));
    return _mm512_permutexvar_epi32(in_order, bytes);
}

/* Four blocks at a time; the ones beyond the row are read as zeros. */
void quantize_avx512(const struct acts *a, int row) {
    struct act_view v = act_view(a);
    const float *x = a->f32 + (size_t)row * (size_t)a->cols;
    int8_t *q = v.q + (size_t)row * v.q_stride;
    size_t first = (size_t)row * (size_t)v.blocks;
    const __m512i spread = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
    for (int b = 0; b < v.blocks; b += 4, x += 128, q += 128) {
        __m512 values[8], max[4];
        for (int i = 0; i < 8; i++) {
            __mmask16 mask = (b + i / 2) * ACT_BLOCK < a->cols ? 0xffff : 0;
            values[i] = _mm512_maskz_loadu_ps(mask, x + 16 * i);
        }
        for (int i = 0; i < 4; i++)
            max[i] = _mm512_max_ps(_mm512_abs_ps(values[2 * i]), _mm512_abs_ps(values[2 * i + 1]));
        __m128 largest = max_four(max);
        __m128 scale = _mm_div_ps(largest, _mm_set1_ps(127));
        __mmask8 positive = _mm_cmp_ps_mask(largest, _mm_setzero_ps(), _CMP_GT_OQ);
        __m128 inverse = _mm_maskz_div_ps(positive, _mm_set1_ps(127), largest);
        __m512 inverses = _mm512_permutexvar_ps(spread, _mm512_castps128_ps512(inverse));
        const __m512 factors[4] = {
            _mm512_shuffle_f32x4(inverses, inverses, 0x00), _mm512_shuffle_f32x4(inverses, inverses, 0x55),
            _mm512_shuffle_f32x4(inverses, inverses, 0xaa), _mm512_shuffle_f32x4(inverses, inverses, 0xff)};
        __m512i rounded[8];
        for (int i = 0; i < 8; i++)
            rounded[i] = _mm512_cvtps_epi32(_mm512_mul_ps(values[i], factors[i / 2]));
        __m512i first_half = pack_bytes(rounded), second_half = pack_bytes(rounded + 4);
        _mm512_store_si512(q, first_half);
        _mm512_store_si512(q + 64, second_half);
        const __m512i every_fourth = _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 28, 24, 20, 16, 12, 8, 4, 0);
        __m512i low = sum_lanes(first_half), high = sum_lanes(second_half);
        __m256i halves = _mm512_castsi512_si256(_mm512_permutex2var_epi32(low, every_fourth, high));
        __m256i pairs = _mm256_add_epi32(halves, _mm256_shuffle_epi32(halves, 0xb1));
        __m128i sums =
            _mm_castps_si128(_mm_shuffle_ps(_mm_castsi128_ps(_mm256_castsi256_si128(pairs)),
                                            _mm_castsi128_ps(_mm256_extracti128_si256(pairs, 1)), 0x88));
        size_t block = first + (size_t)b;
        _mm_store_ps(v.scale + block, scale);
        _mm_store_ps(v.scaled_sum + block, _mm_mul_ps(scale, _mm_cvtepi32_ps(sums)));
        const __m256i zero = _mm256_setzero_si256();
        _mm_store_si128((__m128i *)(v.offset + block),
                        _mm_slli_epi32(_mm_sub_epi32(_mm256_castsi256_si128(zero), sums), 7));
        _mm256_store_si256((__m256i *)(v.half_offset + 2 * block),
                           _mm256_slli_epi32(_mm256_sub_epi32(zero, halves), 7));
    }
}
