/* attend_qk_avx2.h - scores of few rows against q8_0 and q4_0 keys, read as they
 * are stored, in integers: the 256-bit twin of attend_qk_avx512vnni.h. */
#pragma once

#include "attend_pass.h"

/* The two f16 scales that lie side by side in each of 8 stored rows from row i on; those of row 0 are at `first`. */
INLINE __m256i load_scales(struct pass pass, const struct entries *e, const uint8_t *first, int i) {
    int32_t x[8];
    UNROLL for (int j = 0; j < 8; j++) memcpy(&x[j], row_at(pass, e, first, i, j), sizeof x[j]);
    __m128i half[2];
    UNROLL for (int h = 0; h < 2; h++) {
        half[h] = _mm_cvtsi32_si128(x[4 * h]);
        half[h] = _mm_insert_epi32(half[h], x[4 * h + 1], 1);
        half[h] = _mm_insert_epi32(half[h], x[4 * h + 2], 2);
        half[h] = _mm_insert_epi32(half[h], x[4 * h + 3], 3);
    }
    return _mm256_inserti128_si256(_mm256_castsi128_si256(half[0]), half[1], 1);
}

/* First and second scales as floats. */
INLINE void split_scales(__m256i pairs, vec scale[2]) {
    const __m256i firsts_and_seconds = _mm256_setr_epi8(
        0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15, 0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
    __m256i split = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(pairs, firsts_and_seconds), 0xd8);
    scale[0] = _mm256_cvtph_ps(_mm256_castsi256_si128(split));
    scale[1] = _mm256_cvtph_ps(_mm256_extracti128_si256(split, 1));
}

/* 32 floats over the scale, rounded to 16-bit integers: fours of them, those of the first 16 in the order 0 2 1 3. */
INLINE void round_block(const float *x, float scale, __m256i words[2]) {
    vec inverse = v_set(scale > 0 ? 1 / scale : 0);
    __m256i code[4];
    for (int i = 0; i < 4; i++) code[i] = _mm256_cvtps_epi32(v_mul(v_load(x + i * LANES), inverse));
    for (int i = 0; i < 2; i++) words[i] = _mm256_packs_epi32(code[2 * i], code[2 * i + 1]);
}

/* A block as scale * integers of at most 127 in magnitude, as bytes; returns the scale. */
INLINE float quantize_bytes(const float *x, __m256i *bytes) {
    const __m256i in_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    vec most = v_abs(v_load(x));
    for (int i = LANES; i < KV_BLOCK; i += LANES) most = v_max(most, v_abs(v_load(x + i)));
    float scale = v_max_lane(most) / 127;
    __m256i words[2];
    round_block(x, scale, words);
    *bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(words[0], words[1]), in_order);
    return scale;
}

/* The same as words, as large as they can be: 256 * 127 times the sum of their magnitudes fits 32 bits. */
INLINE float quantize_words(const float *x, __m256i words[2]) {
    vec most = v_zero(), total = v_zero();
    for (int i = 0; i < KV_BLOCK; i += LANES) {
        vec size = v_abs(v_load(x + i));
        most = v_max(most, size);
        total = v_add(total, size);
    }
    float scale = fmaxf(v_max_lane(most) / 32767, v_sum(total) / 66000);
    round_block(x, scale, words);
    for (int i = 0; i < 2; i++) words[i] = _mm256_permute4x64_epi64(words[i], 0xd8);
    return scale;
}

INLINE __m256i sum_pairs(__m256i x) { return _mm256_madd_epi16(x, _mm256_set1_epi16(1)); }

/* A block of a query for transposed keys, whose lanes j have channels 4 j .. 4 j + 3 of either half of a block.
 * For q4_0: those as bytes, and what makes up for codes being 8 more than the value. For q8_0: the first and third of
 * those as words in q[2 * j], the second and fourth in q[2 * j + 1]. */
struct query_block {
    __m256i q[8], offset;
    float scale;
};

INLINE struct query_block make_byte_block(const float *x) {
    struct query_block b;
    __m256i all;
    b.scale = quantize_bytes(x, &all);
    b.q[0] = _mm256_shuffle_epi32(all, 0x00);
    b.q[1] = _mm256_shuffle_epi32(all, 0x55);
    b.q[2] = _mm256_shuffle_epi32(all, 0xaa);
    b.q[3] = _mm256_shuffle_epi32(all, 0xff);
    __m256i sum = _mm256_setzero_si256();
    for (int j = 0; j < 4; j++)
        sum = _mm256_add_epi32(sum, sum_pairs(_mm256_maddubs_epi16(_mm256_set1_epi8(8), b.q[j])));
    b.offset = _mm256_sub_epi32(_mm256_setzero_si256(), sum);
    return b;
}

INLINE struct query_block make_word_block(const float *x) {
    const __m256i first_and_third = _mm256_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15, 0, 1, 4, 5, 2,
                                                     3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
    struct query_block b;
    __m256i words[2];
    int32_t pairs[2][8];
    b.scale = quantize_words(x, words) / 256; /* what keys are multiplied by */
    for (int half = 0; half < 2; half++)
        _mm256_storeu_si256((__m256i *)pairs[half], _mm256_shuffle_epi8(words[half], first_and_third));
    for (int j = 0; j < 8; j++) b.q[j] = _mm256_set_m128i(_mm_set1_epi32(pairs[1][j]), _mm_set1_epi32(pairs[0][j]));
    return b;
}

/* [d/32, FEW] blocks of the queries, kept from block to block of entries. */
INLINE const struct query_block *ready_queries(struct pass pass, struct entries *e) {
    struct query_block *blocks = (struct query_block *)e->queries;
    _Static_assert(sizeof *blocks * FEW * (KV_MAX_DIM / KV_BLOCK) <= QUERIES_BYTES, "queries fit");
    if (e->ready == e->q[0]) return blocks;
    for (int c = 0; c < pass.d; c += KV_BLOCK)
        for (int r = 0; r < pass.R; r++)
            blocks[c / KV_BLOCK * FEW + r] =
                pass.type == KV_Q8_0 ? make_word_block(e->q[r] + c) : make_byte_block(e->q[r] + c);
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

/* Products of the rows' block with four transposed keys, those of a key's halves in a lane of either half. Bytes times
 * bytes would need a sign for each product, and then two steps to 32 bits. */
INLINE void dot_four(struct pass pass, const __m256i k[4], const struct query_block *b, __m256i dot[FEW]) {
    if (pass.type == KV_Q8_0) {
        UNROLL for (int j = 0; j < 4; j++) {
            const __m256i one = _mm256_slli_epi16(k[j], 8), other = _mm256_and_si256(k[j], _mm256_set1_epi16(-256));
            UNROLL for (int r = 0; r < pass.R; r++) {
                if (j == 0) dot[r] = _mm256_madd_epi16(one, b[r].q[0]);
                else ADD_32(dot[r], _mm256_madd_epi16(one, b[r].q[2 * j]));
                ADD_32(dot[r], _mm256_madd_epi16(other, b[r].q[2 * j + 1]));
            }
        }
        return;
    }
    UNROLL for (int r = 0; r < pass.R; r++) {
        __m256i x[4];
        UNROLL for (int j = 0; j < 4; j++) x[j] = _mm256_maddubs_epi16(k[j], b[r].q[j]);
        __m256i all = _mm256_add_epi16(_mm256_add_epi16(x[0], x[1]), _mm256_add_epi16(x[2], x[3]));
        dot[r] = _mm256_add_epi32(sum_pairs(all), b[r].offset);
    }
}

/* Products of the rows' block with a block of 8 keys from key i on; that of key 0 is at `first`. */
INLINE void dot_eight(struct pass pass, const struct entries *e, const uint8_t *first, int i,
                      const struct query_block *b, __m256i dot[FEW]) {
    __m256i half[2][FEW];
    UNROLL for (int four = 0; four < 2; four++) {
        __m256i row[4], key[4];
        UNROLL for (int j = 0; j < 4; j++) row[j] = load_key(pass.type, row_at(pass, e, first, i, 4 * four + j));
        transpose_halves(row, key);
        dot_four(pass, key, b, half[four]);
    }
    UNROLL for (int r = 0; r < pass.R; r++)
        dot[r] = _mm256_add_epi32(_mm256_permute2x128_si256(half[0][r], half[1][r], 0x20),
                                  _mm256_permute2x128_si256(half[0][r], half[1][r], 0x31));
}

/* Channels c .. c + 63 of the scores: e->p = or += (c > 0). */
INLINE void qk_two_blocks(struct pass pass, struct entries *e, const struct query_block *b, int c) {
    const size_t block = kv_code_bytes(pass.type);
    const uint8_t *codes = e->k + (size_t)(c / KV_BLOCK) * block;
    const uint8_t *scales = e->k + kv_scale_at(pass.type, pass.d, c / KV_BLOCK);
    for (int i = 0; i < pass.n; i += LANES) {
        struct soon soon = soon_with_keys(pass, e, c, 2 * KV_BLOCK, i);
        vec scale[2], s[FEW];
        split_scales(load_scales(pass, e, scales, i), scale);
        UNROLL for (size_t half = 0; half < 2; half++) {
            __m256i dot[FEW];
            prefetch_part(pass, soon, half * LANES / 2 * soon.stride, (half + 1) * LANES / 2 * soon.stride);
            dot_eight(pass, e, codes + half * block, i, b + half * FEW, dot);
            UNROLL for (int r = 0; r < pass.R; r++) {
                vec y = v_mul(_mm256_cvtepi32_ps(dot[r]), scale[half]), by = v_set(b[half * FEW + (size_t)r].scale);
                s[r] = half ? v_fma(y, by, s[r]) : v_mul(y, by);
            }
        }
        UNROLL for (int r = 0; r < pass.R; r++)
            v_store(e->p[r] + i, c ? v_add(s[r], v_load(e->p[r] + i)) : s[r]);
    }
}

INLINE void qk_blocks(struct pass pass, struct entries *e) {
    const struct query_block *blocks = ready_queries(pass, e);
    for (int c = 0; c < pass.d; c += 2 * KV_BLOCK) qk_two_blocks(pass, e, blocks + c / KV_BLOCK * FEW, c);
}

FOR_SIZES(qk_q8, qk_blocks, KV_Q8_0)
FOR_SIZES(qk_q4, qk_blocks, KV_Q4_0)
