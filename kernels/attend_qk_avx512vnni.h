/* attend_qk_avx512vnni.h - scores of few rows against q8_0 and q4_0 keys, read
 * as they are stored, in 8-bit integers. */
#pragma once

#include "attend_pass.h"

/* Sums in an array of __m512i, whose lanes are 64 bits wide to the compiler,
 * would live in memory with gcc 12. */
typedef int ints __attribute__((vector_size(64)));

INLINE ints dot4(ints sum, __m512i unsigned_bytes, __m512i signed_bytes) {
    return (ints)_mm512_dpbusd_epi32((__m512i)sum, unsigned_bytes, signed_bytes);
}

/* The two f16 scales that lie side by side in each of 16 stored rows from row i on, as pairs; those of row 0 are at
 * `first`. Masked broadcasts are faster than gathering, on some CPUs by far, and than a list of copies, which vectors
 * can't be read from until the last copy has reached the cache. */
INLINE __m256i load_eight(struct pass pass, const struct entries *e, const uint8_t *first, int i) {
    int32_t x[8];
    UNROLL for (int j = 0; j < 8; j++) memcpy(&x[j], row_at(pass, e, first, i, j), sizeof x[j]);
    __m256i pairs = _mm256_set1_epi32(x[0]);
    UNROLL for (int j = 1; j < 8; j++) pairs = _mm256_mask_set1_epi32(pairs, (__mmask8)(1 << j), x[j]);
    return pairs;
}

INLINE __m512i load_scales(struct pass pass, const struct entries *e, const uint8_t *first, int i) {
    __m512i low = _mm512_castsi256_si512(load_eight(pass, e, first, i));
    return _mm512_inserti64x4(low, load_eight(pass, e, first, i + 8), 1);
}

/* Those as floats. */
INLINE void split_scales(__m512i pairs, vec scale[2]) {
    scale[0] = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(pairs));
    scale[1] = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(pairs, 16)));
}

/* n vectors as scale * integers of at most 127 in magnitude; returns the scale. */
INLINE float quantize(const vec *x, int n, __m512i *out) {
    vec most = v_zero();
    for (int i = 0; i < n; i++) most = v_max(most, _mm512_abs_ps(x[i]));
    float scale = v_max_lane(most) / 127;
    vec inverse = v_set(scale > 0 ? 1 / scale : 0);
    for (int i = 0; i < n; i++) out[i] = _mm512_cvtps_epi32(v_mul(x[i], inverse));
    return scale;
}

/* The codes of a pair of key blocks, 64 channels, as unsigned bytes: 128 or 8 more than the value. */
INLINE __m512i load_pair(enum kv_type type, const uint8_t *codes) {
    if (type == KV_Q8_0) return _mm512_xor_si512(_mm512_loadu_si512(codes), _mm512_set1_epi8(-128));
    __m128i a = _mm_loadu_si128((const __m128i *)codes), b = _mm_loadu_si128((const __m128i *)codes + 1);
    __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(a), _mm_srli_epi16(a, 4), 1);
    __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(b), _mm_srli_epi16(b, 4), 1);
    return _mm512_and_si512(_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1), _mm512_set1_epi8(15));
}

/* Lane j of each quarter of four rows becomes out[j]'s quarter, row by row. */
INLINE void transpose_quarters(const __m512i x[4], __m512i out[4]) {
    __m512i a = _mm512_unpacklo_epi32(x[0], x[1]), b = _mm512_unpackhi_epi32(x[0], x[1]);
    __m512i c = _mm512_unpacklo_epi32(x[2], x[3]), d = _mm512_unpackhi_epi32(x[2], x[3]);
    out[0] = _mm512_unpacklo_epi64(a, c);
    out[1] = _mm512_unpackhi_epi64(a, c);
    out[2] = _mm512_unpacklo_epi64(b, d);
    out[3] = _mm512_unpackhi_epi64(b, d);
}

/* From the sums over quarters of four keys each, those of all 16 over the first and the second half. */
INLINE void sum_halves(const ints x[4], __m512i half[2]) {
    __m512i y[2];
    UNROLL for (int j = 0; j < 2; j++) {
        __m512i a = (__m512i)x[2 * j], b = (__m512i)x[2 * j + 1];
        y[j] = _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
    }
    half[0] = _mm512_shuffle_i32x4(y[0], y[1], 0x88);
    half[1] = _mm512_shuffle_i32x4(y[0], y[1], 0xdd);
}

/* A pair of blocks of the queries: values, as q[j] lane j of each quarter in that quarter's every lane; what makes
 * up for the keys' excess; scales. */
struct query_pair {
    __m512i q[4];
    ints offset;
    float scale[2];
};

INLINE struct query_pair quantize_pair(const float *q, int excess) {
    struct query_pair p;
    vec y[4];
    __m512i x[4];
    for (int i = 0; i < 4; i++) y[i] = v_load(q + i * LANES);
    p.scale[0] = quantize(y, 2, x);
    p.scale[1] = quantize(y + 2, 2, x + 2);
    _Alignas(64) int8_t bytes[2 * KV_BLOCK];
    for (int i = 0; i < 4; i++) _mm_store_si128((__m128i *)bytes + i, _mm512_cvtepi32_epi8(x[i]));
    __m512i all = _mm512_load_si512(bytes);
    p.q[0] = _mm512_shuffle_epi32(all, 0x00);
    p.q[1] = _mm512_shuffle_epi32(all, 0x55);
    p.q[2] = _mm512_shuffle_epi32(all, 0xaa);
    p.q[3] = _mm512_shuffle_epi32(all, 0xff);
    ints sum = {0};
    UNROLL for (int j = 0; j < 4; j++) sum = dot4(sum, _mm512_set1_epi8((char)excess), p.q[j]);
    p.offset = -sum;
    return p;
}

/* [d/64, FEW] pairs of the queries, kept from block to block. */
INLINE const struct query_pair *ready_pairs(struct pass pass, struct entries *e) {
    struct query_pair *pairs = (struct query_pair *)e->queries;
    _Static_assert(sizeof *pairs * FEW * (KV_MAX_DIM / 64) <= QUERIES_BYTES, "pairs of queries fit");
    if (e->ready == e->q[0]) return pairs;
    const int excess = pass.type == KV_Q8_0 ? 128 : 8;
    for (int c = 0; c < pass.d; c += 2 * KV_BLOCK)
        for (int r = 0; r < pass.R; r++) pairs[c / (2 * KV_BLOCK) * FEW + r] = quantize_pair(e->q[r] + c, excess);
    e->ready = e->q[0];
    return pairs;
}

/* Channels c .. c + 63 of the scores: e->p = or += (c > 0). */
INLINE void qk_pair(struct pass pass, struct entries *e, const struct query_pair *pair, int c) {
    const uint8_t *codes = e->k + (size_t)(c / KV_BLOCK) * kv_code_bytes(pass.type);
    const uint8_t *scales = e->k + kv_scale_at(pass.type, pass.d, c / KV_BLOCK);
    for (int i = 0; i < pass.n; i += LANES) {
        ints sums[FEW][4];
        struct soon soon = soon_with_keys(pass, e, c, 2 * KV_BLOCK, i);
        UNROLL for (int four = 0; four < 4; four++) {
            __m512i k[4], t[4];
            UNROLL for (int j = 0; j < 4; j++) k[j] = load_pair(pass.type, row_at(pass, e, codes, i, 4 * four + j));
            prefetch_part(pass, soon, (size_t)four * 4 * soon.stride, (size_t)(four + 1) * 4 * soon.stride);
            transpose_quarters(k, t);
            UNROLL for (int r = 0; r < pass.R; r++) sums[r][four] = pair[r].offset;
            UNROLL for (int j = 0; j < 4; j++)
                UNROLL for (int r = 0; r < pass.R; r++) sums[r][four] = dot4(sums[r][four], t[j], pair[r].q[j]);
        }
        vec scale[2];
        split_scales(load_scales(pass, e, scales, i), scale);
        UNROLL for (int r = 0; r < pass.R; r++) {
            __m512i half[2];
            sum_halves(sums[r], half);
            vec s = v_mul(_mm512_cvtepi32_ps(half[0]), v_mul(scale[0], v_set(pair[r].scale[0])));
            s = v_fma(_mm512_cvtepi32_ps(half[1]), v_mul(scale[1], v_set(pair[r].scale[1])), s);
            v_store(e->p[r] + i, c ? v_add(s, v_load(e->p[r] + i)) : s);
        }
    }
}

INLINE void qk_pairs(struct pass pass, struct entries *e) {
    const struct query_pair *pairs = ready_pairs(pass, e);
    for (int c = 0; c < pass.d; c += 2 * KV_BLOCK) qk_pair(pass, e, pairs + c / (2 * KV_BLOCK) * FEW, c);
}

/* Copies for the usual head sizes are for full blocks alone, whose number of entries is a constant, too. */
#define FOR_BLOCKS(name, f, type) FOR_SIZES_IF(e->n == ATTEND_BLOCK, name, f, type, ATTEND_BLOCK)

FOR_BLOCKS(qk_q8, qk_pairs, KV_Q8_0)
FOR_BLOCKS(qk_q4, qk_pairs, KV_Q4_0)
