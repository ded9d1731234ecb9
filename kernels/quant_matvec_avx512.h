/* quant_matvec_avx512.h - matrix-vector products with quantised weights in 512 bits.
 *
 * Included by the files that define
 *
 *     __m512i dot_bytes(__m512i sum, __m512i u, __m512i q, bool wide)
 *
 * which adds the products of four unsigned and four signed bytes to each 32-bit
 * sum; u is below 128 unless `wide`.
 *
 * The weights are read once, where they lie in the file. Four rows are taken at
 * a time. In formats with blocks of 32, a 128-bit lane holds a part of a block,
 * and a vector parts of four. */
#pragma once

#include <immintrin.h>

#include "internal.h"
#include "prefetch.h"
#include "quants.h"
#include "simd_avx512.h"

/* ---- formats in blocks of 32 --------------------------------------------------- */

/* Four blocks of activations, as four blocks of weights come out of the file. */
struct act_quad {
    __m512i lo, hi; /* elements 0-15 and 16-31 of block i in lane i */
    __m512i offset; /* -zero * sum(q) in the first element of each lane */
    __m512 scale;   /* per lane */
    __m512 scaled_sum;
};

INLINE __m512i spread_lanes(const void *four) {
    const __m512i index = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
    return _mm512_permutexvar_epi32(index, _mm512_castsi128_si512(_mm_loadu_si128(four)));
}

/* From zero = 128 to a format's, for the first element of each lane. */
INLINE __m512i scale_offset(__m512i offset, int zero) {
    return _mm512_maskz_mullo_epi32(0x1111, _mm512_srai_epi32(offset, 7), _mm512_set1_epi32(zero));
}

INLINE const struct act_quad *prepare_quads(const struct acts *a, int row, int zero, void *scratch) {
    const __m512i low = _mm512_set_epi64(13, 12, 9, 8, 5, 4, 1, 0);
    const __m512i high = _mm512_set_epi64(15, 14, 11, 10, 7, 6, 3, 2);
    struct act_view v = act_row(a, row);
    struct act_quad *quads = scratch;
    for (int b = 0; b < v.blocks; b += 4) {
        const int8_t *q = v.q + (size_t)b * ACT_BLOCK;
        __m512i q01 = _mm512_load_si512(q), q23 = _mm512_load_si512(q + 64);
        struct act_quad *x = &quads[b / 4];
        x->lo = _mm512_permutex2var_epi64(q01, low, q23);
        x->hi = _mm512_permutex2var_epi64(q01, high, q23);
        x->scale = _mm512_castsi512_ps(spread_lanes(v.scale + b));
        x->scaled_sum = _mm512_castsi512_ps(spread_lanes(v.scaled_sum + b));
        x->offset = scale_offset(spread_lanes(v.offset + b), zero);
    }
    return quads;
}

/* Where the parts of four blocks are in the two vectors that are loaded for
 * them, the first at byte 0, the second at byte `second`. Numbers count 16 bits. */
struct quad_map {
    int second;
    __m512i scales;              /* element 4*block + row: d, 16 + that: m */
    __m512i nibbles;             /* lane b: the 16 bytes of block b */
    __mmask32 scales2, nibbles2; /* those that come from the second vector */
};

INLINE struct quad_map quad_map(const struct quant_format *f) {
    struct quad_map map = {.second = 4 * f->bytes - 64 < 2 * f->bytes ? 4 * f->bytes - 64 : 2 * f->bytes};
    uint16_t scales[32], nibbles[32];
    for (int i = 0; i < 32; i++) {
        int byte = i % 16 / 4 * f->bytes + i / 16 * 2;
        if (byte >= 64) map.scales2 |= 1u << i;
        scales[i] = (uint16_t)((byte >= 64 ? byte - map.second : byte) / 2);
        int first = (i / 8 + 1) * f->bytes - 16; /* of the nibbles */
        if (first > 48) map.nibbles2 |= 1u << i;
        nibbles[i] = (uint16_t)((first > 48 ? first - map.second : first) / 2 + i % 8);
    }
    map.scales = _mm512_loadu_si512(scales);
    map.nibbles = _mm512_loadu_si512(nibbles);
    return map;
}

/* 64 bytes at p + at, zero from byte `bytes` of p on. */
INLINE __m512i load_part(const uint8_t *p, int at, int bytes) {
    if (at + 64 <= bytes) return _mm512_loadu_si512(p + at);
    return _mm512_maskz_loadu_epi8(bytes > at ? ~0ull >> (64 - (bytes - at)) : 0, p + at);
}

/* The 16 bytes at p in each of n <= 4 blocks; the lanes beyond repeat the last. */
INLINE __m512i join_lanes(const uint8_t *p, int bytes, int n) {
    const __m128i *p1 = (const __m128i *)(p + bytes * (n > 1 ? 1 : 0));
    const __m128i *p2 = (const __m128i *)(p + bytes * (n > 2 ? 2 : n - 1));
    const __m128i *p3 = (const __m128i *)(p + bytes * (n > 3 ? 3 : n - 1));
    __m512i z = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)p));
    z = _mm512_inserti32x4(z, _mm_loadu_si128(p1), 1);
    z = _mm512_inserti32x4(z, _mm_loadu_si128(p2), 2);
    return _mm512_inserti32x4(z, _mm_loadu_si128(p3), 3);
}

/* Adds 16 to those of the 16 bytes of each lane whose bits are set at p. */
INLINE __m512i add_fifth(__m512i u, const uint8_t *p, int bytes, int n) {
    uint64_t mask = 0;
    for (int i = 0; i < 4; i++) {
        uint16_t bits;
        memcpy(&bits, p + bytes * (i < n ? i : n - 1), sizeof bits);
        mask |= (uint64_t)bits << (16 * i);
    }
    return _mm512_mask_add_epi8(u, mask, u, _mm512_set1_epi8(16));
}

/* The elements of n <= 4 blocks at p: 0-15 of each in *lo, 16-31 in *hi. */
INLINE void load_quad(enum tensor_type type, const struct quant_format *f, const struct quad_map *map,
                      const uint8_t *p, int n, __m512i part1, __m512i part2, __m512i *lo, __m512i *hi) {
    if (type == TENSOR_Q8_0) {
        const __m512i flip = _mm512_set1_epi8((char)0x80);
        *lo = _mm512_xor_si512(join_lanes(p + 2, f->bytes, n), flip);
        *hi = _mm512_xor_si512(join_lanes(p + 18, f->bytes, n), flip);
        return;
    }
    const __m512i nibble = _mm512_set1_epi8(15);
    __m512i z = _mm512_permutexvar_epi16(map->nibbles, part1);
    z = _mm512_mask_permutexvar_epi16(z, map->nibbles2, map->nibbles, part2);
    *lo = _mm512_and_si512(z, nibble);
    *hi = _mm512_and_si512(_mm512_srli_epi16(z, 4), nibble);
    if (type == TENSOR_Q5_0 || type == TENSOR_Q5_1) {
        const uint8_t *bits = p + f->bytes - 20;
        *lo = add_fifth(*lo, bits, f->bytes, n);
        *hi = add_fifth(*hi, bits + 2, f->bytes, n);
    }
}

struct matvec_sums {
    __m512 dot[4]; /* of a row each */
    __m512 min;    /* element r of each lane belongs to row r */
};

INLINE void add_quad(enum tensor_type type, const struct quant_format *f, const struct quad_map *map,
                     const struct act_quad *x, int n, const uint8_t *const p[4], struct matvec_sums *s) {
    __m512i part1[4], part2[4], scales = _mm512_setzero_si512();
    for (int r = 0; r < 4; r++) {
        part1[r] = load_part(p[r], 0, n * f->bytes);
        part2[r] = load_part(p[r], map->second, n * f->bytes);
        __mmask32 row = (__mmask32)0x11111111 << r;
        scales = _mm512_mask_permutexvar_epi16(scales, row, map->scales, part1[r]);
        if (f->bytes > 20)
            scales = _mm512_mask_permutexvar_epi16(scales, row & map->scales2, map->scales, part2[r]);
    }
    __m512 scale = _mm512_mul_ps(_mm512_cvtph_ps(_mm512_castsi512_si256(scales)), x->scale);
    if (f->has_min) {
        __m512 min = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(scales, 1));
        s->min = _mm512_fmadd_ps(min, x->scaled_sum, s->min);
    }
    const __m512 row_scale[4] = {_mm512_permute_ps(scale, 0x00), _mm512_permute_ps(scale, 0x55),
                                 _mm512_permute_ps(scale, 0xaa), _mm512_permute_ps(scale, 0xff)};
    for (int r = 0; r < 4; r++) {
        __m512i lo, hi;
        load_quad(type, f, map, p[r], n, part1[r], part2[r], &lo, &hi);
        bool wide = type == TENSOR_Q8_0;
        __m512i dot = dot_bytes(dot_bytes(x->offset, lo, x->lo, wide), hi, x->hi, wide);
        s->dot[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), row_scale[r], s->dot[r]);
    }
}

INLINE void matvec_quads(enum tensor_type type, const struct quant_format *f, const struct weight *w,
                         int begin, int end, const struct acts *a, int row, float *y, bool add,
                         void *scratch) {
    const struct act_quad *x = prepare_quads(a, row, f->zero, scratch);
    const struct quad_map map = quad_map(f);
    const struct ahead ahead = prefetch_ahead(w, end, 4);
    int blocks = w->cols / f->block;
    for (int r = begin; r < end; r += 4) {
        struct matvec_sums s = {0};
        const uint8_t *p[4];
        for (int i = 0; i < 4; i++) p[i] = w->data + (size_t)(r + i < end ? r + i : end - 1) * w->row_bytes;
        const uint8_t *read = p[0]; /* as if the rows lay one behind the other */
        int b = 0;
        for (; b + 4 <= blocks; b += 4, read += 16 * f->bytes) {
            prefetch(read, 16 * f->bytes, ahead);
            add_quad(type, f, &map, &x[b / 4], 4, p, &s);
            for (int i = 0; i < 4; i++) p[i] += 4 * f->bytes;
        }
        if (b < blocks) {
            prefetch(read, 4 * (blocks - b) * f->bytes, ahead);
            add_quad(type, f, &map, &x[b / 4], blocks - b, p, &s);
        }
        store_four(y + r, sum_four(s.dot, s.min), end - r < 4 ? end - r : 4, add);
    }
}

/* ---- formats in blocks of 256 -------------------------------------------------- */

/* 256 activations, as a block of weights comes out of the file. */
struct act_super {
    __m512i q[4];
    __m512i offset[4]; /* Q6_K: -zero * sum(q) of each 16 in the first element of a lane */
    __m512 scales;     /* Q4_K, Q5_K: 8 scales, 8 negated scaled sums; Q6_K: 16 scales */
};

INLINE const struct act_super *prepare_supers(enum tensor_type type, const struct acts *a, int row,
                                              void *scratch) {
    struct act_view v = act_row(a, row);
    struct act_super *supers = scratch;
    for (int b = 0; b < a->cols / ACT_BLOCK; b += 8) {
        const int8_t *q = v.q + (size_t)b * ACT_BLOCK;
        struct act_super *x = &supers[b / 8];
        for (int i = 0; i < 4; i++) x->q[i] = _mm512_load_si512(q + 64 * i);
        __m256 scale = _mm256_loadu_ps(v.scale + b);
        if (type == TENSOR_Q6_K) {
            const __m512i twice = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
            x->scales = _mm512_permutexvar_ps(twice, _mm512_castps256_ps512(scale));
            for (int i = 0; i < 4; i++) {
                x->offset[i] = scale_offset(spread_lanes(v.half_offset + 2 * b + 4 * i), 32);
            }
        } else {
            __m256 sums = _mm256_sub_ps(_mm256_setzero_ps(), _mm256_loadu_ps(v.scaled_sum + b));
            x->scales = _mm512_insertf32x8(_mm512_castps256_ps512(scale), sums, 1);
            for (int i = 0; i < 4; i += 2) { /* low nibbles are groups 0 and 2, high ones 1 and 3 */
                __m512i q01 = x->q[i], q23 = x->q[i + 1];
                x->q[i] = _mm512_shuffle_i64x2(q01, q23, 0x44);
                x->q[i + 1] = _mm512_shuffle_i64x2(q01, q23, 0xee);
            }
        }
    }
    return supers;
}

/* The scales of a Q4_K or Q5_K block (see unpack_k_scales): 8 d, 8 -m. */
INLINE __m512 load_k_scales(const uint8_t *p) {
    const __m128i shifts = _mm_set_epi32(4, 0, 0, 0);
    const __m128i low = _mm_set_epi32(0x0f0f0f0f, 0x3f3f3f3f, 0x0f0f0f0f, 0x3f3f3f3f);
    const __m128i high = _mm_set_epi32(0x30303030, 0, 0x30303030, 0);
    __m128i head = _mm_loadu_si128((const __m128i *)p); /* d and min, then three words of scales */
    __m128i a = _mm_and_si128(_mm_srlv_epi32(_mm_shuffle_epi32(head, 0xed), shifts), low);
    __m128i b = _mm_and_si128(_mm_srli_epi32(_mm_shuffle_epi32(head, 0x95), 2), high);
    __m512 scales = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_or_si128(a, b)));
    const __m512i spread = _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
    return _mm512_mul_ps(scales, _mm512_permutexvar_ps(spread, _mm512_castps128_ps512(_mm_cvtph_ps(head))));
}

INLINE __m512i two_halves(int lower, int upper) {
    return _mm512_inserti64x4(_mm512_set1_epi32(lower), _mm256_set1_epi32(upper), 1);
}

INLINE __m512 add_super_k4(enum tensor_type type, const struct quant_format *f, const struct act_super *x,
                           const uint8_t *p, __m512 sum) {
    const __m512i nibble = _mm512_set1_epi8(15), sixteen = _mm512_set1_epi8(16);
    __m512 scales = _mm512_mul_ps(load_k_scales(p), x->scales);
    sum = _mm512_mask_add_ps(sum, 0xff00, sum, scales);
    __m512i fifth = _mm512_setzero_si512();
    if (type == TENSOR_Q5_K) fifth = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)(p + 16)));
    for (int i = 0; i < 4; i += 2) { /* groups 2*i .. 2*i + 3 */
        __m512i z = _mm512_loadu_si512(p + f->bytes - 128 + 32 * i);
        __m512i lo = _mm512_and_si512(z, nibble), hi = _mm512_and_si512(_mm512_srli_epi16(z, 4), nibble);
        if (type == TENSOR_Q5_K) {
            __m512i bit_lo = two_halves(0x01010101 << (2 * i), 0x01010101 << (2 * i + 2));
            __m512i bit_hi = _mm512_add_epi8(bit_lo, bit_lo);
            lo = _mm512_mask_add_epi8(lo, _mm512_test_epi8_mask(fifth, bit_lo), lo, sixteen);
            hi = _mm512_mask_add_epi8(hi, _mm512_test_epi8_mask(fifth, bit_hi), hi, sixteen);
        }
        __m512i dot_lo = dot_bytes(_mm512_setzero_si512(), lo, x->q[i], false);
        __m512i dot_hi = dot_bytes(_mm512_setzero_si512(), hi, x->q[i + 1], false);
        __m512 scale_lo = _mm512_permutexvar_ps(two_halves(2 * i, 2 * i + 2), scales);
        __m512 scale_hi = _mm512_permutexvar_ps(two_halves(2 * i + 1, 2 * i + 3), scales);
        sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot_lo), scale_lo, sum);
        sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot_hi), scale_hi, sum);
    }
    return sum;
}

INLINE __m512 add_super_k6(const struct act_super *x, const uint8_t *p, __m512 sum) {
    const __m512i nibble = _mm512_set1_epi8(15), pair = _mm512_set1_epi8(0x30);
    __m512 scales = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(p + 192))));
    scales = _mm512_mul_ps(scales, _mm512_mul_ps(_mm512_set1_ps(read_f16(p + 208)), x->scales));
    for (int i = 0; i < 4; i += 2) { /* half a block: 128 elements */
        __m512i z = _mm512_loadu_si512(p + 32 * i);
        __m512i bits = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)(p + 128 + 16 * i)));
        __m512i lo = _mm512_and_si512(z, nibble), hi = _mm512_and_si512(_mm512_srli_epi16(z, 4), nibble);
        /* bits 0-1 and 2-3 belong to the two halves of lo, 4-5 and 6-7 to those of hi */
        __m512i bits_lo = _mm512_sllv_epi32(bits, two_halves(4, 2));
        __m512i bits_hi = _mm512_srlv_epi32(bits, two_halves(0, 2));
        const __m512i u[2] = {_mm512_or_si512(lo, _mm512_and_si512(bits_lo, pair)),
                              _mm512_or_si512(hi, _mm512_and_si512(bits_hi, pair))};
        for (int j = i; j < i + 2; j++) {
            const __m512i index = spread_lanes((const int32_t[]){4 * j, 4 * j + 1, 4 * j + 2, 4 * j + 3});
            __m512i dot = dot_bytes(x->offset[j], u[j - i], x->q[j], false);
            sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), _mm512_permutexvar_ps(index, scales), sum);
        }
    }
    return sum;
}

INLINE void matvec_supers(enum tensor_type type, const struct quant_format *f, const struct weight *w,
                          int begin, int end, const struct acts *a, int row, float *y, bool add,
                          void *scratch) {
    const struct act_super *x = prepare_supers(type, a, row, scratch);
    const struct ahead ahead = prefetch_ahead(w, end, 4);
    int blocks = w->cols / f->block;
    for (int r = begin; r < end; r += 4) {
        __m512 sums[4] = {0};
        const uint8_t *p[4];
        for (int i = 0; i < 4; i++) p[i] = w->data + (size_t)(r + i < end ? r + i : end - 1) * w->row_bytes;
        for (int b = 0; b < blocks; b++) {
            prefetch(w->data + (size_t)r * w->row_bytes + (size_t)b * 4 * (size_t)f->bytes, 4 * f->bytes, ahead);
            for (int i = 0; i < 4; i++) {
                const uint8_t *block = p[i] + b * f->bytes;
                sums[i] = type == TENSOR_Q6_K ? add_super_k6(&x[b], block, sums[i])
                                              : add_super_k4(type, f, &x[b], block, sums[i]);
            }
        }
        store_four(y + r, sum_four(sums, _mm512_setzero_ps()), end - r < 4 ? end - r : 4, add);
    }
}

#define MATVEC(name, type, loop)                                                                          \
    static void name(const struct weight *w, int begin, int end, const struct acts *a, int row, float *y, \
                     bool add, void *scratch) {                                                           \
        loop(type, &quant_formats[type], w, begin, end, a, row, y, add, scratch);                         \
    }

MATVEC(matvec_q4_0, TENSOR_Q4_0, matvec_quads)
MATVEC(matvec_q4_1, TENSOR_Q4_1, matvec_quads)
MATVEC(matvec_q5_0, TENSOR_Q5_0, matvec_quads)
MATVEC(matvec_q5_1, TENSOR_Q5_1, matvec_quads)
MATVEC(matvec_q8_0, TENSOR_Q8_0, matvec_quads)
MATVEC(matvec_q4_k, TENSOR_Q4_K, matvec_supers)
MATVEC(matvec_q5_k, TENSOR_Q5_K, matvec_supers)
MATVEC(matvec_q6_k, TENSOR_Q6_K, matvec_supers)
