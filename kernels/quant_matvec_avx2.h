/* quant_matvec_avx2.h - matrix-vector products with quantised weights in 256 bits.
 *
 * The weights are read where they lie in the file, a block of 32 at a time, two
 * rows at once. */
#pragma once

#include "quants.h"
#include "simd_avx2.h"

/* Sums of four products of bytes, as 32 bits: two products fit 16 if u < 128. */
INLINE __m256i dot_bytes(__m256i u, __m256i q) {
    return _mm256_madd_epi16(_mm256_maddubs_epi16(u, q), _mm256_set1_epi16(1));
}

/* The same for signed weights, whose sign goes to q. */
INLINE __m256i dot_signed(__m256i w, __m256i q) {
    return dot_bytes(_mm256_abs_epi8(w), _mm256_sign_epi8(q, w));
}

/* 16 bytes of nibbles as 32 bytes: the low ones, then the high ones. */
INLINE __m256i load_nibbles(const uint8_t *p) {
    __m128i z = _mm_loadu_si128((const __m128i *)p);
    __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(z), _mm_srli_epi16(z, 4), 1);
    return _mm256_and_si256(both, _mm256_set1_epi8(15));
}

/* 16 in every byte whose bit is set in the 32 bits at p. */
INLINE __m256i load_fifth_bits(const uint8_t *p) {
    int32_t bits;
    memcpy(&bits, p, sizeof bits);
    const __m256i spread = _mm256_set_epi64x(0x0303030303030303, 0x0202020202020202, 0x0101010101010101, 0);
    const __m256i select = _mm256_set1_epi64x((long long)0x8040201008040201);
    __m256i bytes = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(bits), spread), select);
    return _mm256_and_si256(_mm256_cmpeq_epi8(bytes, select), _mm256_set1_epi8(16));
}

/* A block of 32 times 32 activations. Q8_0 weights are signed, the others are u. */
INLINE __m256i dot_block(enum tensor_type type, int bytes, const uint8_t *p, __m256i q) {
    if (type == TENSOR_Q8_0) return dot_signed(_mm256_loadu_si256((const __m256i *)(p + 2)), q);
    __m256i u = load_nibbles(p + bytes - 16);
    if (type == TENSOR_Q5_0 || type == TENSOR_Q5_1) u = _mm256_or_si256(u, load_fifth_bits(p + bytes - 20));
    return dot_bytes(u, q);
}

/* Formats in blocks of 32. */
INLINE void matvec_blocks(enum tensor_type type, const struct weight *w, int begin, int end,
                          const struct acts *a, int row, float *y, bool add, void *scratch) {
    (void)scratch;
    const struct quant_format *f = &quant_formats[type];
    struct act_view x = act_row(a, row);
    float zero = type == TENSOR_Q8_0 ? 0 : (float)f->zero;
    for (int r = begin; r < end; r += 2) {
        __m256 sum[2] = {0};
        float rest[2] = {0};
        const uint8_t *p[2] = {w->data + (size_t)r * w->row_bytes, NULL};
        p[1] = r + 1 < end ? p[0] + w->row_bytes : p[0];
        for (int b = 0; b < w->cols / f->block; b++) {
            __m256i q = _mm256_load_si256((const __m256i *)(x.q + b * ACT_BLOCK));
            if (b % 2 == 0) prefetch(p[0] + b * f->bytes, 4 * f->bytes);
            for (int i = 0; i < 2; i++, p[i - 1] += f->bytes) {
                float d = read_f16(p[i]), m = f->has_min ? read_f16(p[i] + 2) : -zero * d;
                __m256 dot = _mm256_cvtepi32_ps(dot_block(type, f->bytes, p[i], q));
                sum[i] = _mm256_fmadd_ps(_mm256_set1_ps(d * x.scale[b]), dot, sum[i]);
                rest[i] += m * x.scaled_sum[b];
            }
        }
        for (int i = 0; i < 2 && r + i < end; i++) {
            float dot = sum_floats(sum[i]) + rest[i];
            y[r + i] = add ? y[r + i] + dot : dot;
        }
    }
}

/* The 32-element groups of a Q4_K or Q5_K block. */
INLINE __m256i load_group_k4(enum tensor_type type, int bytes, const uint8_t *p, int g) {
    __m256i z = _mm256_loadu_si256((const __m256i *)(p + bytes - 128 + g / 2 * 32));
    if (g % 2) z = _mm256_srli_epi16(z, 4);
    __m256i u = _mm256_and_si256(z, _mm256_set1_epi8(15));
    if (type == TENSOR_Q5_K) {
        const __m256i bit = _mm256_set1_epi8((char)(1 << g));
        __m256i set =
            _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_loadu_si256((const __m256i *)(p + 16)), bit), bit);
        u = _mm256_or_si256(u, _mm256_and_si256(set, _mm256_set1_epi8(16)));
    }
    return u;
}

/* Elements 32*g .. 32*g + 31 of a Q6_K block. */
INLINE __m256i load_group_k6(const uint8_t *p, int g) {
    int half = g / 4, part = g % 4; /* parts 0-3: low nibbles of both 32 bytes, then the high ones */
    __m256i z = _mm256_loadu_si256((const __m256i *)(p + 64 * half + part % 2 * 32));
    __m256i bits = _mm256_loadu_si256((const __m256i *)(p + 128 + 32 * half));
    if (part >= 2) z = _mm256_srli_epi16(z, 4);
    if (part == 0) bits = _mm256_slli_epi16(bits, 4);
    if (part == 1) bits = _mm256_slli_epi16(bits, 2);
    if (part == 3) bits = _mm256_srli_epi16(bits, 2);
    return _mm256_or_si256(_mm256_and_si256(z, _mm256_set1_epi8(15)),
                           _mm256_and_si256(bits, _mm256_set1_epi8(0x30)));
}

INLINE __m256 add_block_k4(enum tensor_type type, const uint8_t *p, const struct act_view *x, int b,
                           __m256 sum) {
    float d[8], m[8];
    unpack_k_scales(p, d, m);
    __m256 scales = _mm256_mul_ps(_mm256_loadu_ps(d), _mm256_loadu_ps(x->scale + 8 * b));
    sum = _mm256_fmadd_ps(_mm256_loadu_ps(m), _mm256_loadu_ps(x->scaled_sum + 8 * b), sum);
    _mm256_storeu_ps(d, scales);
    for (int g = 0; g < 8; g++) {
        __m256i q = _mm256_load_si256((const __m256i *)(x->q + b * MAX_BLOCK + 32 * g));
        __m256i dot = dot_bytes(load_group_k4(type, quant_formats[type].bytes, p, g), q);
        sum = _mm256_fmadd_ps(_mm256_set1_ps(d[g]), _mm256_cvtepi32_ps(dot), sum);
    }
    return sum;
}

INLINE __m256 add_block_k6(const uint8_t *p, const struct act_view *x, int b, __m256 sum) {
    float d = read_f16(p + 208);
    for (int g = 0; g < 8; g++) {
        const int8_t *s = (const int8_t *)p + 192 + 2 * g;
        float d0 = d * x->scale[8 * b + g] * (float)s[0], d1 = d * x->scale[8 * b + g] * (float)s[1];
        __m256 scale = _mm256_insertf128_ps(_mm256_set1_ps(d0), _mm_set1_ps(d1), 1);
        const int32_t *offset = x->half_offset + 2 * (8 * b + g); /* of zero = 128; here it is 32 */
        __m256i start = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_cvtsi32_si128(offset[0] / 4)),
                                                _mm_cvtsi32_si128(offset[1] / 4), 1);
        __m256i q = _mm256_load_si256((const __m256i *)(x->q + b * MAX_BLOCK + 32 * g));
        __m256i dot = _mm256_add_epi32(start, dot_bytes(load_group_k6(p, g), q));
        sum = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(dot), sum);
    }
    return sum;
}

/* Formats in blocks of 256. */
INLINE void matvec_supers(enum tensor_type type, const struct weight *w, int begin, int end,
                          const struct acts *a, int row, float *y, bool add, void *scratch) {
    (void)scratch;
    struct act_view x = act_row(a, row);
    int bytes = quant_formats[type].bytes;
    for (int r = begin; r < end; r++) {
        const uint8_t *p = w->data + (size_t)r * w->row_bytes;
        __m256 sum = _mm256_setzero_ps();
        for (int b = 0; b < w->cols / MAX_BLOCK; b++, p += bytes) {
            prefetch(p, bytes);
            sum = type == TENSOR_Q6_K ? add_block_k6(p, &x, b, sum) : add_block_k4(type, p, &x, b, sum);
        }
        float dot = sum_floats(sum);
        y[r] = add ? y[r] + dot : dot;
    }
}

#define MATVEC(name, type, loop)                                                                          \
    static void name(const struct weight *w, int begin, int end, const struct acts *a, int row, float *y, \
                     bool add, void *scratch) {                                                           \
        loop(type, w, begin, end, a, row, y, add, scratch);                                               \
    }

MATVEC(matvec_q4_0, TENSOR_Q4_0, matvec_blocks)
MATVEC(matvec_q4_1, TENSOR_Q4_1, matvec_blocks)
MATVEC(matvec_q5_0, TENSOR_Q5_0, matvec_blocks)
MATVEC(matvec_q5_1, TENSOR_Q5_1, matvec_blocks)
MATVEC(matvec_q8_0, TENSOR_Q8_0, matvec_blocks)
MATVEC(matvec_q4_k, TENSOR_Q4_K, matvec_supers)
MATVEC(matvec_q5_k, TENSOR_Q5_K, matvec_supers)
MATVEC(matvec_q6_k, TENSOR_Q6_K, matvec_supers)
