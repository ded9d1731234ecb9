/* vector_avx2.c - float32 vectors and activation quantisation in 256 bits. */
#include "plain.h"
#include "simd_avx2.h"

/* e^x to about one unit in the last place: 2^n times a polynomial in the rest
 * (the coefficients are those of Cephes' expf). 2^n is applied in two halves, as
 * n may lie outside of the exponents of normal numbers. */
INLINE __m256 exp_ps(__m256 x) {
    x = _mm256_min_ps(_mm256_set1_ps(89), _mm256_max_ps(_mm256_set1_ps(-104), x));
    __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)),
                               _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
    __m256 p = _mm256_set1_ps(1.9875691500e-4f);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.3981999507e-3f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(8.3334519073e-3f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(4.1665795894e-2f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.6666665459e-1f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(5.0000001201e-1f));
    p = _mm256_fmadd_ps(p, _mm256_mul_ps(r, r), _mm256_add_ps(r, _mm256_set1_ps(1)));
    __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1);
    const __m256i one = _mm256_set1_epi32(127);
    __m256 scale0 = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, one), 23));
    __m256 scale1 =
        _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(whole, half), one), 23));
    return _mm256_mul_ps(_mm256_mul_ps(p, scale0), scale1);
}

void silu_mul_avx2(float *out, const float *gate, const float *up, int n) {
    for (int i = 0; i < n; i += 8) {
        __m256 g = load_first(gate + i, n - i);
        __m256 e = exp_ps(_mm256_sub_ps(_mm256_setzero_ps(), g));
        __m256 silu = _mm256_div_ps(g, _mm256_add_ps(_mm256_set1_ps(1), e));
        store_first(out + i, n - i, _mm256_mul_ps(silu, load_first(up + i, n - i)));
    }
}

void vec_add_avx2(float *x, const float *y, int n) {
    int i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(x + i, _mm256_add_ps(_mm256_loadu_ps(x + i), _mm256_loadu_ps(y + i)));
    for (; i < n; i++) x[i] += y[i];
}

void rmsnorm_avx2(float *out, const float *x, const float *weight, int n, float eps) {
    __m256 sum0 = _mm256_setzero_ps(), sum1 = sum0;
    int i = 0;
    for (; i + 16 <= n; i += 16) {
        __m256 a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(x + i + 8);
        sum0 = _mm256_fmadd_ps(a, a, sum0);
        sum1 = _mm256_fmadd_ps(b, b, sum1);
    }
    for (; i < n; i += 8) {
        __m256 a = load_first(x + i, n - i);
        sum0 = _mm256_fmadd_ps(a, a, sum0);
    }
    float mean = sum_floats(_mm256_add_ps(sum0, sum1)) / (float)n;
    float scale = 1 / sqrtf(mean + eps);
    for (i = 0; i + 8 <= n; i += 8) {
        __m256 scaled = _mm256_mul_ps(_mm256_loadu_ps(x + i), _mm256_set1_ps(scale));
        _mm256_storeu_ps(out + i, _mm256_mul_ps(scaled, _mm256_loadu_ps(weight + i)));
    }
    for (; i < n; i++) out[i] = x[i] * scale * weight[i];
}

/* The sum of the bytes in each 128-bit lane. */
INLINE __m256i sum_lanes(__m256i q) {
    __m256i s = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), q), _mm256_set1_epi16(1));
    s = _mm256_add_epi32(s, _mm256_shuffle_epi32(s, 0xb1));
    return _mm256_add_epi32(s, _mm256_shuffle_epi32(s, 0x4e));
}

void quantize_avx2(const struct acts *a, int row) {
    struct act_view v = act_row(a, row);
    const float *x = a->f32 + (size_t)row * (size_t)a->cols;
    int blocks = a->cols / ACT_BLOCK;
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    for (int b = 0; b < blocks; b++, x += ACT_BLOCK) {
        __m256 values[4], max = _mm256_setzero_ps();
        for (int i = 0; i < 4; i++) {
            values[i] = _mm256_loadu_ps(x + 8 * i);
            max = _mm256_max_ps(max, _mm256_and_ps(values[i], magnitude));
        }
        __m128 m = _mm_max_ps(_mm256_castps256_ps128(max), _mm256_extractf128_ps(max, 1));
        m = _mm_max_ps(m, _mm_movehl_ps(m, m));
        float largest = _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
        __m256 inverse = _mm256_set1_ps(largest > 0 ? 127 / largest : 0);
        __m256i rounded[4];
        for (int i = 0; i < 4; i++) rounded[i] = _mm256_cvtps_epi32(_mm256_mul_ps(values[i], inverse));
        __m256i words0 = _mm256_packs_epi32(rounded[0], rounded[1]),
                words1 = _mm256_packs_epi32(rounded[2], rounded[3]);
        const __m256i order = _mm256_set_epi32(7, 3, 6, 2, 5, 1, 4, 0);
        __m256i q = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(words0, words1), order);
        _mm256_store_si256((__m256i *)(v.q + b * ACT_BLOCK), q);
        __m256i sums = sum_lanes(q);
        act_set(&v, (size_t)b, largest / 127, _mm256_extract_epi32(sums, 0), _mm256_extract_epi32(sums, 4));
    }
    for (int b = blocks; b < v.blocks; b++) {
        _mm256_store_si256((__m256i *)(v.q + b * ACT_BLOCK), _mm256_setzero_si256());
        act_set(&v, (size_t)b, 0, 0, 0);
    }
}
