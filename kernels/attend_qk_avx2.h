/* attend_qk_avx2.h - scores of few rows against q8_0 and q4_0 keys, read as they
 * are stored, in 8-bit integers: the 256-bit twin of attend_qk_avx512vnni.h. */
#pragma once

#include "attend_simd.h"

/* The two f16 scales that lie side by side `at` bytes into each of 8 stored rows, as floats. */
INLINE void load_scales(const uint8_t *const *rows, size_t at, vec scale[2]) {
    const __m256i firsts_and_seconds = _mm256_setr_epi8(
        0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15, 0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
    int32_t x[8];
    UNROLL for (int i = 0; i < 8; i++) memcpy(&x[i], rows[i] + at, sizeof x[i]);
    __m256i pairs = _mm256_setr_epi32(x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7]);
    __m256i split = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(pairs, firsts_and_seconds), 0xd8);
    scale[0] = _mm256_cvtph_ps(_mm256_castsi256_si128(split));
    scale[1] = _mm256_cvtph_ps(_mm256_extracti128_si256(split, 1));
}

/* 32 floats as scale * integers of at most 127 in magnitude, as bytes; returns the scale. */
INLINE float quantize_block(const float *x, __m256i *bytes) {
    const __m256i in_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    vec most = v_abs(v_load(x));
    for (int i = LANES; i < KV_BLOCK; i += LANES) most = v_max(most, v_abs(v_load(x + i)));
    float scale = v_max_lane(most) / 127;
    vec inverse = v_set(scale > 0 ? 1 / scale : 0);
    __m256i code[4];
    for (int i = 0; i < 4; i++) code[i] = _mm256_cvtps_epi32(v_mul(v_load(x + i * LANES), inverse));
    __m256i low = _mm256_packs_epi32(code[0], code[1]), high = _mm256_packs_epi32(code[2], code[3]);
    *bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), in_order);
    return scale;
}

/* Pairs of bytes multiplied and added up; one of both products' factors is at most 127 in magnitude. */
INLINE __m256i dot2_u8(__m256i u, __m256i q) { return _mm256_maddubs_epi16(u, q); }

INLINE __m256i sum_pairs(__m256i x) { return _mm256_madd_epi16(x, _mm256_set1_epi16(1)); }

/* A block of a query: values, as q[j] lane j of either half in that half's every lane; what makes up for q4_0 codes
 * being 8 more than the value. */
struct query_block {
    __m256i q[4], offset;
    float scale;
};

INLINE struct query_block make_query_block(enum kv_type type, const float *x) {
    struct query_block b;
    __m256i all;
    b.scale = quantize_block(x, &all);
    b.q[0] = _mm256_shuffle_epi32(all, 0x00);
    b.q[1] = _mm256_shuffle_epi32(all, 0x55);
    b.q[2] = _mm256_shuffle_epi32(all, 0xaa);
    b.q[3] = _mm256_shuffle_epi32(all, 0xff);
    __m256i sum = _mm256_setzero_si256();
    const __m256i excess = _mm256_set1_epi8(type == KV_Q4_0 ? 8 : 0);
    for (int j = 0; j < 4; j++) sum = _mm256_add_epi32(sum, sum_pairs(dot2_u8(excess, b.q[j])));
    b.offset = _mm256_sub_epi32(_mm256_setzero_si256(), sum);
    return b;
}

/* [d/32, FEW] blocks of the queries, kept from block to block of entries. */
INLINE const struct query_block *ready_queries(enum kv_type type, int R, int d, struct entries *e) {
    struct query_block *blocks = (struct query_block *)e->queries;
    _Static_assert(sizeof *blocks * FEW * (KV_MAX_DIM / KV_BLOCK) <= QUERIES_BYTES, "queries fit");
    if (e->ready == e->q[0]) return blocks;
    for (int c = 0; c < d; c += KV_BLOCK)
        for (int r = 0; r < R; r++) blocks[c / KV_BLOCK * FEW + r] = make_query_block(type, e->q[r] + c);
    e->ready = e->q[0];
    return blocks;
}

/* The codes of a key's block: signed, or 8 more than the value. */
INLINE __m256i load_key(enum kv_type type, const uint8_t *codes) {
    if (type == KV_Q8_0) return _mm256_loadu_si256((const __m256i *)codes);
    __m128i z = _mm_loadu_si128((const __m128i *)codes);
    __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(z), _mm_srli_epi16(z, 4), 1);
    return _mm256_and_si256(both, _mm256_set1_epi8(15));
}

/* Lane j of each half of four rows becomes out[j]'s half, row by row. */
INLINE void transpose_halves(const __m256i x[4], __m256i out[4]) {
    __m256i a = _mm256_unpacklo_epi32(x[0], x[1]), b = _mm256_unpackhi_epi32(x[0], x[1]);
    __m256i c = _mm256_unpacklo_epi32(x[2], x[3]), d = _mm256_unpackhi_epi32(x[2], x[3]);
    out[0] = _mm256_unpacklo_epi64(a, c);
    out[1] = _mm256_unpackhi_epi64(a, c);
    out[2] = _mm256_unpacklo_epi64(b, d);
    out[3] = _mm256_unpackhi_epi64(b, d);
}

/* Products of a query's block with four transposed keys, those of a key's halves in a lane of either half. */
INLINE __m256i dot_four(enum kv_type type, const __m256i k[4], const __m256i size[4], const struct query_block *b) {
    __m256i x[4];
    if (type == KV_Q8_0) {
        UNROLL for (int j = 0; j < 4; j++) x[j] = sum_pairs(dot2_u8(size[j], _mm256_sign_epi8(b->q[j], k[j])));
        return _mm256_add_epi32(_mm256_add_epi32(x[0], x[1]), _mm256_add_epi32(x[2], x[3]));
    }
    UNROLL for (int j = 0; j < 4; j++) x[j] = dot2_u8(k[j], b->q[j]);
    __m256i all = _mm256_add_epi16(_mm256_add_epi16(x[0], x[1]), _mm256_add_epi16(x[2], x[3]));
    return _mm256_add_epi32(sum_pairs(all), b->offset);
}

/* Products of R rows' block with a block of 8 keys, which lies `codes` bytes into them. */
INLINE void dot_eight(enum kv_type type, int R, const uint8_t *const *k, size_t codes, const struct query_block *b,
                      __m256i dot[FEW]) {
    __m256i half[2][FEW];
    UNROLL for (int four = 0; four < 2; four++) {
        __m256i row[4], key[4], size[4];
        UNROLL for (int j = 0; j < 4; j++) row[j] = load_key(type, k[4 * four + j] + codes);
        transpose_halves(row, key);
        UNROLL for (int j = 0; j < 4; j++) size[j] = _mm256_abs_epi8(key[j]);
        UNROLL for (int r = 0; r < R; r++) half[four][r] = dot_four(type, key, size, &b[r]);
    }
    UNROLL for (int r = 0; r < R; r++)
        dot[r] = _mm256_add_epi32(_mm256_permute2x128_si256(half[0][r], half[1][r], 0x20),
                                  _mm256_permute2x128_si256(half[0][r], half[1][r], 0x31));
}

/* Channels c .. c + 63 of the scores: e->p = or += (c > 0). n is a multiple of 8. */
INLINE void qk_two_blocks(enum kv_type type, int R, int d, int n, struct entries *e, const struct query_block *b,
                          int c) {
    const size_t codes = (size_t)(c / KV_BLOCK) * kv_code_bytes(type), eight_rows = 8 * kv_row_bytes(type, d);
    for (int i = 0; i < n; i += LANES) {
        const struct soon soon = c == 0 ? soon_after(e->k[i], e->ahead_k) : (struct soon){0};
        vec scale[2], s[FEW];
        load_scales(&e->k[i], kv_scale_at(type, d, c / KV_BLOCK), scale);
        UNROLL for (int half = 0; half < 2; half++) {
            __m256i dot[FEW];
            prefetch_part(soon, (size_t)half * eight_rows / 2, (size_t)(half + 1) * eight_rows / 2);
            dot_eight(type, R, &e->k[i], codes + (size_t)half * kv_code_bytes(type), b + half * FEW, dot);
            UNROLL for (int r = 0; r < R; r++) {
                vec y = v_mul(_mm256_cvtepi32_ps(dot[r]), scale[half]), by = v_set(b[half * FEW + r].scale);
                s[r] = half ? v_fma(y, by, s[r]) : v_mul(y, by);
            }
        }
        UNROLL for (int r = 0; r < R; r++)
            v_store(e->p[r] + i, c ? v_add(s[r], v_load(e->p[r] + i)) : s[r]);
    }
}

INLINE void qk_blocks(enum kv_type type, int R, int d, int n, struct entries *e) {
    const struct query_block *blocks = ready_queries(type, R, d, e);
    for (int c = 0; c < d; c += 2 * KV_BLOCK)
        qk_two_blocks(type, R, d, whole_vectors(n), e, blocks + c / KV_BLOCK * FEW, c);
}

FOR_SIZES(qk_q8, qk_blocks, KV_Q8_0)
FOR_SIZES(qk_q4, qk_blocks, KV_Q4_0)
