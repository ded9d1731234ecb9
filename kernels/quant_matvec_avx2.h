/* quant_matvec_avx2.h - matrix-vector products with quantised weights in 256 bits.
 *
 * The weights are read where they lie in the file, a block of 32 at a time, two
 * rows at once. */
#pragma once

#include "prefetch.h"
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

/* What the d and the m of a block are multiplied by, twice: scale and scaled sum. Where
 * there is no m, -zero * d takes its place. */
INLINE const float *prepare_scales(const struct act_view *x, int blocks, float m_factor, void *scratch) {
    float *scales = scratch;
    for (int b = 0; b < blocks; b++) {
        scales[4 * b] = scales[4 * b + 2] = x->scale[b];
        scales[4 * b + 1] = scales[4 * b + 3] = m_factor * x->scaled_sum[b];
    }
    return scales;
}

/* d and m (or d again) of a block of one row, then of another. */
INLINE __m128 load_scales(bool has_min, const uint8_t *p0, const uint8_t *p1) {
    int32_t s0, s1;
    memcpy(&s0, p0, sizeof s0);
    memcpy(&s1, p1, sizeof s1);
    __m128i halves = _mm_insert_epi32(_mm_cvtsi32_si128(s0), s1, 1);
    return _mm_cvtph_ps(has_min ? halves : _mm_shufflelo_epi16(halves, 0xa0));
}

/* Formats in blocks of 32. */
INLINE void matvec_blocks(enum tensor_type type, const struct weight *w, int begin, int end,
                          const struct acts *a, int row, float *y, bool add, void *scratch) {
    const struct quant_format *f = &quant_formats[type];
    struct act_view x = act_row(a, row);
    int blocks = w->cols / f->block, zero = type == TENSOR_Q8_0 ? 0 : f->zero;
    const struct ahead ahead = prefetch_ahead(w, end, 2);
    const float *scales = prepare_scales(&x, blocks, f->has_min ? 1 : -(float)zero, scratch);
    for (int r = begin; r < end; r += 2) {
        const uint8_t *p0 = w->data + (size_t)r * w->row_bytes, *p1 = r + 1 < end ? p0 + w->row_bytes : p0;
        __m256 sum0 = _mm256_setzero_ps(), sum1 = sum0;
        __m128 rest = _mm_setzero_ps(); /* the m part: elements 1 and 3 */
        for (int b = 0; b < blocks; b++, p0 += f->bytes, p1 += f->bytes) {
            if (b % 2 == 0) prefetch(p0 + b * f->bytes, 4 * f->bytes, ahead);
            __m256i q = _mm256_load_si256((const __m256i *)(x.q + b * ACT_BLOCK));
            __m128 scale = _mm_mul_ps(load_scales(f->has_min, p0, p1), _mm_loadu_ps(scales + 4 * b));
            rest = _mm_add_ps(rest, scale);
            __m256 scale0 = _mm256_broadcastss_ps(scale),
                   scale1 = _mm256_broadcastss_ps(_mm_movehl_ps(scale, scale));
            sum0 = _mm256_fmadd_ps(scale0, _mm256_cvtepi32_ps(dot_block(type, f->bytes, p0, q)), sum0);
            sum1 = _mm256_fmadd_ps(scale1, _mm256_cvtepi32_ps(dot_block(type, f->bytes, p1, q)), sum1);
        }
        float parts[4];
        _mm_storeu_ps(parts, rest);
        float dot0 = sum_floats(sum0) + parts[1], dot1 = sum_floats(sum1) + parts[3];
        y[r] = add ? y[r] + dot0 : dot0;
        if (r + 1 < end) y[r + 1] = add ? y[r + 1] + dot1 : dot1;
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

/* The scales of a Q4_K or Q5_K block (see unpack_k_scales): 8 d, and 8 m yet to be subtracted. */
INLINE __m256 load_k_scales(const uint8_t *p, __m256 *m) {
    const __m128i shifts = _mm_set_epi32(4, 0, 0, 0);
    const __m128i low = _mm_set_epi32(0x0f0f0f0f, 0x0f0f0f0f, 0x3f3f3f3f, 0x3f3f3f3f);
    const __m128i high = _mm_set_epi32(0x30303030, 0x30303030, 0, 0);
    __m128i head = _mm_loadu_si128((const __m128i *)p); /* d and min, then three words of scales */
    /* words: d 0-3, m 0-3, d 4-7, m 4-7 */
    __m128i a = _mm_and_si128(_mm_srlv_epi32(_mm_shuffle_epi32(head, 0xf9), shifts), low);
    __m128i b = _mm_and_si128(_mm_srli_epi32(_mm_shuffle_epi32(head, 0x90), 2), high);
    __m128i bytes = _mm_shuffle_epi32(_mm_or_si128(a, b), 0xd8); /* d 0-7, m 0-7 */
    __m128 both = _mm_cvtph_ps(head);
    *m = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))),
                       _mm256_broadcastss_ps(_mm_movehdup_ps(both)));
    return _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)), _mm256_broadcastss_ps(both));
}

INLINE __m256 add_block_k4(enum tensor_type type, const uint8_t *p, const struct act_view *x, int b,
                           __m256 sum) {
    __m256 m, scales = _mm256_mul_ps(load_k_scales(p, &m), _mm256_loadu_ps(x->scale + 8 * b));
    sum = _mm256_fnmadd_ps(m, _mm256_loadu_ps(x->scaled_sum + 8 * b), sum);
    for (int g = 0; g < 8; g++) {
        __m256i q = _mm256_load_si256((const __m256i *)(x->q + b * MAX_BLOCK + 32 * g));
        __m256i dot = dot_bytes(load_group_k4(type, quant_formats[type].bytes, p, g), q);
        __m256 scale = _mm256_permutevar8x32_ps(scales, _mm256_set1_epi32(g));
        sum = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(dot), sum);
    }
    return sum;
}

/* Two scales to a group. What the zero of 32 takes off is four of the fractions of 128 that are kept. */
INLINE __m256 add_block_k6(const uint8_t *p, const struct act_view *x, int b, __m256 sum) {
    const __m256 d = _mm256_set1_ps(read_f16(p + 208));
    for (int h = 0; h < 2; h++) { /* half a block: four groups */
        __m128i bytes = _mm_loadl_epi64((const __m128i *)(p + 192 + 8 * h));
        __m256 own = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)), d);
        __m256 act = _mm256_castps128_ps256(_mm_loadu_ps(x->scale + 8 * b + 4 * h));
        __m256 scales = _mm256_mul_ps(own, _mm256_permutevar8x32_ps(act, _mm256_set_epi32(3, 3, 2, 2, 1, 1, 0, 0)));
        __m256i offsets = _mm256_loadu_si256((const __m256i *)(x->half_offset + 2 * (8 * b + 4 * h)));
        __m256 zeros = _mm256_cvtepi32_ps(_mm256_srai_epi32(offsets, 2));
        sum = _mm256_fmadd_ps(scales, zeros, sum);
        for (int g = 0; g < 4; g++) {
            const __m256i pair = _mm256_set_epi32(1, 1, 1, 1, 0, 0, 0, 0);
            __m256 scale = _mm256_permutevar8x32_ps(scales, _mm256_add_epi32(pair, _mm256_set1_epi32(2 * g)));
            __m256i q = _mm256_load_si256((const __m256i *)(x->q + b * MAX_BLOCK + 128 * h + 32 * g));
            sum = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(dot_bytes(load_group_k6(p, 4 * h + g), q)), sum);
        }
    }
    return sum;
}

/* Formats in blocks of 256. */
INLINE void matvec_supers(enum tensor_type type, const struct weight *w, int begin, int end,
                          const struct acts *a, int row, float *y, bool add, void *scratch) {
    (void)scratch;
    struct act_view x = act_row(a, row);
    const struct ahead ahead = prefetch_ahead(w, end, 1);
    int bytes = quant_formats[type].bytes;
    for (int r = begin; r < end; r++) {
        const uint8_t *p = w->data + (size_t)r * w->row_bytes;
        __m256 sum = _mm256_setzero_ps();
        for (int b = 0; b < w->cols / MAX_BLOCK; b++, p += bytes) {
            prefetch(p, bytes, ahead);
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
