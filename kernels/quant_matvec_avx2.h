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

/* ---- formats in blocks of 32 ------------------------------------------------------
 *
 * Two blocks of two rows are multiplied at a time. Of the halves of a vector one
 * is of either block, so that what is unpacked and added up is full. */

/* What both rows multiply: the first and the last 16 of both blocks, and in lanes as those of a dot product lie. */
struct pair {
    int8_t first[32], last[32];
    int32_t offset[8]; /* -zero * sum(q), in one lane of two */
    float scale[8];    /* scale and scaled sum: what d and m are multiplied by */
};

INLINE __m256i load_halves(const uint8_t *p0, const uint8_t *p1) {
    __m128i first = _mm_loadu_si128((const __m128i *)p0);
    return _mm256_inserti128_si256(_mm256_castsi128_si256(first), _mm_loadu_si128((const __m128i *)p1), 1);
}

/* Two blocks from the activations. */
INLINE void prepare_pair(struct pair *pair, const struct act_view *x, int b, int zero) {
    const uint8_t *q = (const uint8_t *)x->q + b * ACT_BLOCK;
    _mm256_store_si256((__m256i *)pair->first, load_halves(q, q + ACT_BLOCK));
    _mm256_store_si256((__m256i *)pair->last, load_halves(q + 16, q + ACT_BLOCK + 16));
    for (int i = 0; i < 8; i += 2) {
        pair->offset[i] = x->offset[b + i / 4] / 128 * zero;
        pair->offset[i + 1] = 0;
        pair->scale[i] = x->scale[b + i / 4];
        pair->scale[i + 1] = x->scaled_sum[b + i / 4];
    }
}

/* 16 in every byte whose bit is set, of those in bytes `at` and at + 1 of either half. */
INLINE __m256i fifth_bits(__m256i bits, int at) {
    const __m256i spread = _mm256_set_epi64x(0x0101010101010101, 0, 0x0101010101010101, 0);
    const __m256i select = _mm256_set1_epi64x((long long)0x8040201008040201);
    __m256i bytes = _mm256_shuffle_epi8(bits, _mm256_add_epi8(spread, _mm256_set1_epi8((char)at)));
    __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, select), select);
    return _mm256_and_si256(set, _mm256_set1_epi8(16));
}

/* Sums of products of the blocks at p0 and p1, those of each in its half: of Q8_0 as 32 bits, else as 16, of which
 * two still fit 16. */
INLINE __m256i dot_pair(enum tensor_type type, int bytes, const uint8_t *p0, const uint8_t *p1,
                        const struct pair *pair) {
    __m256i q0 = _mm256_load_si256((const __m256i *)pair->first);
    __m256i q1 = _mm256_load_si256((const __m256i *)pair->last);
    if (type == TENSOR_Q8_0)
        return _mm256_add_epi32(dot_signed(load_halves(p0 + 2, p1 + 2), q0),
                                dot_signed(load_halves(p0 + 18, p1 + 18), q1));
    const __m256i low = _mm256_set1_epi8(15);
    __m256i z = load_halves(p0 + bytes - 16, p1 + bytes - 16);
    __m256i u0 = _mm256_and_si256(z, low), u1 = _mm256_and_si256(_mm256_srli_epi16(z, 4), low);
    if (type == TENSOR_Q5_0 || type == TENSOR_Q5_1) {
        __m256i bits = load_halves(p0 + bytes - 20, p1 + bytes - 20);
        u0 = _mm256_or_si256(u0, fifth_bits(bits, 0));
        u1 = _mm256_or_si256(u1, fifth_bits(bits, 2));
    }
    return _mm256_add_epi16(_mm256_maddubs_epi16(u0, q0), _mm256_maddubs_epi16(u1, q1));
}

/* d and what follows it of two blocks of one row and of another: two lanes each, a half for either block. */
INLINE __m256 load_scales(const uint8_t *p0, const uint8_t *p1, int bytes) {
    int32_t s[4];
    memcpy(&s[0], p0, sizeof *s);
    memcpy(&s[1], p1, sizeof *s);
    memcpy(&s[2], p0 + bytes, sizeof *s);
    memcpy(&s[3], p1 + bytes, sizeof *s);
    return _mm256_cvtph_ps(_mm_set_epi32(s[3], s[2], s[1], s[0]));
}

/* Products of two rows with two blocks of activations: lanes 0, 1, 4 and 5 are those of the first row. `rest`, in the
 * odd ones of those lanes, has the part of m. */
INLINE __m256 add_pair(enum tensor_type type, const uint8_t *p0, const uint8_t *p1, const struct pair *pair,
                       __m256 sum, __m256 *rest) {
    const struct quant_format *f = &quant_formats[type];
    __m256i dot0 = dot_pair(type, f->bytes, p0, p0 + f->bytes, pair);
    __m256i dot1 = dot_pair(type, f->bytes, p1, p1 + f->bytes, pair);
    __m256i lower = _mm256_unpacklo_epi64(dot0, dot1), upper = _mm256_unpackhi_epi64(dot0, dot1);
    __m256i dot = type == TENSOR_Q8_0 ? _mm256_add_epi32(lower, upper)
                                      : _mm256_madd_epi16(_mm256_add_epi16(lower, upper), _mm256_set1_epi16(1));
    __m256 scale = _mm256_mul_ps(load_scales(p0, p1, f->bytes), _mm256_load_ps(pair->scale));
    if (f->has_min) *rest = _mm256_add_ps(*rest, scale);
    else if (type != TENSOR_Q8_0) dot = _mm256_add_epi32(dot, _mm256_load_si256((const __m256i *)pair->offset));
    return _mm256_fmadd_ps(_mm256_moveldup_ps(scale), _mm256_cvtepi32_ps(dot), sum);
}

/* Formats in blocks of 32. */
INLINE void matvec_blocks(enum tensor_type type, const struct weight *w, int begin, int end,
                          const struct acts *a, int row, float *y, bool add, void *scratch) {
    const struct quant_format *f = &quant_formats[type];
    struct act_view x = act_row(a, row);
    struct pair *pairs = scratch;
    const int blocks = w->cols / ACT_BLOCK;
    for (int b = 0; b < blocks; b += 2) prepare_pair(&pairs[b / 2], &x, b, f->zero);
    const struct ahead ahead = prefetch_ahead(w, end, 2);
    for (int r = begin; r < end; r += 2) {
        const uint8_t *p0 = w->data + (size_t)r * w->row_bytes, *p1 = r + 1 < end ? p0 + w->row_bytes : p0;
        /* lines of both rows are asked for in the order in which they lie; what is ahead of them lies in one piece */
        const uint8_t *near = read_after(p0, ahead.near, ahead.end, ahead.next);
        const uint8_t *far = read_after(p0, ahead.far, ahead.end, ahead.next);
        __m256 sum = _mm256_setzero_ps(), rest = sum;
        for (int b = 0; b + 2 <= blocks; b += 2, p0 += 2 * f->bytes, p1 += 2 * f->bytes) {
            prefetch_at(near + 2 * b * f->bytes, far + 2 * b * f->bytes, 4 * f->bytes, ahead);
            sum = add_pair(type, p0, p1, &pairs[b / 2], sum, &rest);
        }
        if (blocks % 2) {
            uint8_t last[2][2 * 32 + 4] = {{0}}; /* a block and one of zeros */
            memcpy(last[0], p0, (size_t)f->bytes);
            memcpy(last[1], p1, (size_t)f->bytes);
            sum = add_pair(type, last[0], last[1], &pairs[blocks / 2], sum, &rest);
        }
        if (f->has_min) sum = _mm256_add_ps(sum, _mm256_blend_ps(_mm256_setzero_ps(), rest, 0xaa));
        float dots[4]; /* of both rows, twice */
        __m128 both = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
        _mm_storeu_ps(dots, _mm_hadd_ps(both, both));
        y[r] = add ? y[r] + dots[0] : dots[0];
        if (r + 1 < end) y[r + 1] = add ? y[r + 1] + dots[1] : dots[1];
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
