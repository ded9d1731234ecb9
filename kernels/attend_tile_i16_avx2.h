/* attend_tile_i16_avx2.h - rows() of attend.h in 16-bit integers and 256 bits.
 *
 * As attend_tile.h, but an instruction takes 16 products, not 8, and the one
 * that adds them up can go to more ports. Queries and keys are rounded to 12
 * bits of their largest channel, values to 11 of their channel's largest in a
 * block, weights to 16 of the row's; the softmax is in float32. No sum can
 * overflow 32 bits. */
#pragma once

#include "attend_simd.h"

#define PAIRS (ATTEND_BLOCK / 2)
#define QK_MOST 2047.0f    /* the largest channel of a query or a key: 2047^2 * KV_MAX_DIM < 2^31 */
#define V_MOST 1023.0f     /* of a value: 1023 * 32767 * ATTEND_BLOCK < 2^31 */
#define P_ONE 32767.0f     /* the weight 1 */
#define AT_ONCE 4          /* keys, or channels: 4 x 3 sums in 16 registers */

/* Channels are padded with zeros to whole vectors of 16 integers. */
INLINE int padded_width(int d) { return (d + 15) / 16 * 16; }

/* A row of floats, rounded to integers up to QK_MOST; returns their scale. */
static float round_row(const float *x, int width, int16_t *out) {
    vec most = v_zero();
    for (int c = 0; c < width; c += LANES) most = v_max(most, v_abs(v_load(x + c)));
    const float largest = v_max_lane(most);
    const vec inverse = v_set(largest > 0 ? QK_MOST / largest : 0);
    for (int c = 0; c < width; c += 2 * LANES) {
        __m256i low = _mm256_cvtps_epi32(v_mul(v_load(x + c), inverse));
        __m256i high = _mm256_cvtps_epi32(v_mul(v_load(x + c + LANES), inverse));
        __m256i all = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8);
        _mm256_storeu_si256((__m256i *)(out + c), all);
    }
    return largest / QK_MOST;
}

/* A stored row as floats, with zeros up to `width`. */
static void load_padded(enum kv_type type, int d, const uint8_t *row, int width, float *x) {
    simd_load(type, d, row, x);
    for (int c = d; c < width; c++) x[c] = 0;
}

/* Two 16-bit integers to a lane. */
INLINE __m256i pair_up(__m256i even, __m256i odd) {
    return _mm256_blend_epi16(even, _mm256_slli_epi32(odd, 16), 0xaa);
}

/* ---- packed blocks ------------------------------------------------------------------
 *
 *     int16_t k[ATTEND_BLOCK][width]
 *     int16_t v[PAIRS][width][2]        by pairs of entries
 *     float   k_scale[ATTEND_BLOCK]
 *     float   v_scale[width]            divided by P_ONE
 */
struct block {
    int16_t *k, *v;
    float *k_scale, *v_scale;
};

static size_t block_bytes_i16(int d) {
    const size_t width = (size_t)padded_width(d);
    return 2 * sizeof(int16_t) * ATTEND_BLOCK * width + sizeof(float) * (ATTEND_BLOCK + width);
}

static struct block block_at(int d, const void *base) {
    const size_t integers = ATTEND_BLOCK * (size_t)padded_width(d);
    struct block b = {.k = (int16_t *)base, .v = (int16_t *)base + integers};
    b.k_scale = (float *)(void *)(b.v + integers);
    b.v_scale = b.k_scale + ATTEND_BLOCK;
    return b;
}

/* LANES channels of the block's values. */
INLINE void pack_channels(int width, const float *x, const struct block *b, int c) {
    vec most = v_zero();
    for (int i = 0; i < ATTEND_BLOCK; i++) most = v_max(most, v_abs(v_load(x + i * width + c)));
    const vec any = _mm256_cmp_ps(most, v_zero(), _CMP_GT_OQ);
    const vec inverse = _mm256_and_ps(any, _mm256_div_ps(v_set(V_MOST), most));
    v_store(b->v_scale + c, v_mul(most, v_set(1 / (V_MOST * P_ONE))));
    for (int i = 0; i < ATTEND_BLOCK; i += 2) {
        __m256i even = _mm256_cvtps_epi32(v_mul(v_load(x + i * width + c), inverse));
        __m256i odd = _mm256_cvtps_epi32(v_mul(v_load(x + (i + 1) * width + c), inverse));
        _mm256_storeu_si256((__m256i *)(b->v + i * width + 2 * c), pair_up(even, odd));
    }
}

static void pack_i16(const struct kv_view *kv, int begin, int n, void *base) {
    const int width = padded_width(kv->d);
    const struct block b = block_at(kv->d, base);
    _Alignas(32) float v[ATTEND_BLOCK * KV_MAX_DIM], k[KV_MAX_DIM]; /* [ATTEND_BLOCK, width], [width] */
    for (int i = 0; i < n; i++) {
        const size_t entry = (size_t)(begin + i);
        load_padded(kv->type_k, kv->d, kv->k + entry * kv->k_row_bytes, width, k);
        b.k_scale[i] = round_row(k, width, b.k + i * width);
        load_padded(kv->type_v, kv->d, kv->v + entry * kv->v_row_bytes, width, v + i * width);
    }
    memset(v + n * width, 0, (size_t)((ATTEND_BLOCK - n) * width) * sizeof *v);
    for (int c = 0; c < width; c += LANES) pack_channels(width, v, &b, c);
}

/* ---- many rows ------------------------------------------------------------------------ */

struct tile_i16 {
    _Alignas(32) int16_t q[KV_MAX_DIM / 2][TILE_ROWS][2];
    _Alignas(32) float q_scale[TILE_ROWS];                 /* times log2 e */
    _Alignas(32) int16_t p[PAIRS][TILE_ROWS][2];           /* weights */
    _Alignas(32) float s[ATTEND_BLOCK][TILE_ROWS];         /* scores */
    _Alignas(32) float acc[KV_MAX_DIM][TILE_ROWS];
    _Alignas(32) float max[TILE_ROWS], sum[TILE_ROWS], limit[TILE_ROWS];
    _Alignas(32) float shrink[TILE_ROWS], grow[TILE_ROWS]; /* of the sums so far; of this block's */
};

/* What p points at is not kept in a register. */
#define READ_ANEW(p) __asm__("" : "+r"(p))

/* The two integers at p in all lanes. */
INLINE __m256i broadcast2(const int16_t *p) {
    int32_t x;
    memcpy(&x, p, sizeof x);
    return _mm256_set1_epi32(x);
}

/* sum[j][x] = sum over n pairs i of rows[i][TILE_ROWS][2], those of vector x, times the pair at other + i * step + j *
 * apart. Rows are read from memory for each product: that costs no instruction, and leaves registers for the sums. */
INLINE void multiply_tile(int n, int16_t (*rows)[TILE_ROWS][2], const int16_t *other, int step, int apart,
                          __m256i sum[AT_ONCE][VECS]) {
    UNROLL for (int j = 0; j < AT_ONCE; j++)
        UNROLL for (int x = 0; x < VECS; x++) sum[j][x] = _mm256_setzero_si256();
    for (int i = 0; i < n; i++) {
        const __m256i *row = (const __m256i *)rows[i];
        UNROLL for (int j = 0; j < AT_ONCE; j++) {
            __m256i y = broadcast2(other + (size_t)i * (size_t)step + j * apart);
            KEEP(y);
            READ_ANEW(row);
            UNROLL for (int x = 0; x < VECS; x++) {
                sum[j][x] = _mm256_add_epi32(sum[j][x], _mm256_madd_epi16(y, _mm256_load_si256(row + x)));
                KEEP(sum[j][x]);
            }
        }
    }
}

/* Scores of all rows against AT_ONCE keys from key i on. */
INLINE void qk_tile_i16(struct tile_i16 *t, int width, const struct block *b, int i) {
    __m256i sum[AT_ONCE][VECS];
    multiply_tile(width / 2, t->q, b->k + i * width, 2, width, sum);
    UNROLL for (int j = 0; j < AT_ONCE; j++) {
        const vec scale = v_set(b->k_scale[i + j]);
        UNROLL for (int x = 0; x < VECS; x++) {
            vec y = v_mul(_mm256_cvtepi32_ps(sum[j][x]), scale);
            v_store(t->s[i + j] + x * LANES, v_mul(y, v_load(t->q_scale + x * LANES)));
        }
    }
}

/* P_ONE * 2^x for x <= 0 as an integer: a polynomial of relative error 3e-6. */
INLINE __m256i exp2_i16(vec x) {
    x = v_max(x, v_set(-100));
    const vec whole = _mm256_floor_ps(x), f = v_sub(x, whole);
    vec y = v_fma(f, v_set(1.3534167e-2f * P_ONE), v_set(5.2011464e-2f * P_ONE));
    y = v_fma(y, f, v_set(2.4144275e-1f * P_ONE));
    y = v_fma(y, f, v_set(6.9300383e-1f * P_ONE));
    y = v_fma(y, f, v_set(1.0000026f * P_ONE));
    const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(whole), 23);
    return _mm256_cvtps_epi32(_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(y), exponent)));
}

/* Scores of entries that a row may not see, and of one that fills up the last pair, become NEVER. */
INLINE void mask_scores(struct tile_i16 *t, int n, bool masked) {
    for (int i = 0; masked && i < n; i++)
        UNROLL for (int x = 0; x < VECS; x++) {
            float *s = t->s[i] + x * LANES;
            v_store(s, v_below(v_load(s), v_set((float)i), v_load(t->limit + x * LANES)));
        }
    if (n % 2) UNROLL for (int x = 0; x < VECS; x++) v_store(t->s[n] + x * LANES, v_set(NEVER));
}

/* Weights of the first n entries of the block, and of none up to a pair, for LANES rows from row x on. */
INLINE void softmax_rows(struct tile_i16 *t, int n, int x) {
    vec top = v_set(NEVER), next = top; /* of even and of odd entries: a chain of maxima is slow */
    for (int i = 0; i < n; i += 2) {
        top = v_max(top, v_load(t->s[i] + x));
        next = v_max(next, v_load(t->s[i + 1] + x));
    }
    top = v_max(top, next);
    const vec floor = v_max(top, v_set(NEVER / 2)); /* a row that sees nothing here gets weights of zero */
    __m256i sum = _mm256_setzero_si256();
    for (int i = 0; i < n; i += 2) {
        __m256i even = exp2_i16(v_sub(v_load(t->s[i] + x), floor));
        __m256i odd = exp2_i16(v_sub(v_load(t->s[i + 1] + x), floor));
        sum = _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
        _mm256_store_si256((__m256i *)t->p[i / 2][x], pair_up(even, odd));
    }
    join_block(t->max + x, t->sum + x, t->shrink + x, t->grow + x, top,
               v_mul(_mm256_cvtepi32_ps(sum), v_set(1 / P_ONE)));
}

/* AT_ONCE channels of the weighted sums, from channel c on: acc = acc * shrink + grow * sum of p_i v_i. */
INLINE void pv_tile_i16(struct tile_i16 *t, int pairs, int width, const struct block *b, int c) {
    __m256i sum[AT_ONCE][VECS];
    multiply_tile(pairs, t->p, b->v + 2 * c, 2 * width, 2, sum);
    UNROLL for (int j = 0; j < AT_ONCE; j++) {
        const vec scale = v_set(b->v_scale[c + j]);
        UNROLL for (int x = 0; x < VECS; x++) {
            float *acc = t->acc[c + j] + x * LANES;
            vec old = v_mul(v_load(acc), v_load(t->shrink + x * LANES));
            vec y = v_mul(_mm256_cvtepi32_ps(sum[j][x]), scale);
            v_store(acc, v_fma(y, v_load(t->grow + x * LANES), old));
        }
    }
}

static void load_tile_i16(struct tile_i16 *t, int d, const struct attend_row *rows, int m) {
    const int width = padded_width(d);
    for (int r = 0; r < TILE_ROWS; r++) {
        const struct attend_row *row = &rows[r < m ? r : 0]; /* lanes without a row repeat the first */
        _Alignas(32) float q[KV_MAX_DIM];
        int16_t rounded[KV_MAX_DIM];
        load_padded(KV_F32, d, (const uint8_t *)row->q, width, q);
        t->q_scale[r] = LOG2_E * round_row(q, width, rounded);
        for (int c = 0; c < width; c += 2) memcpy(t->q[c / 2][r], rounded + c, sizeof t->q[0][0]);
    }
    load_states(t->max, t->sum, t->acc, LOG2_E, d, width, rows, m);
}

static void rows_i16(int d, const void *blocks, int begin, int n, const struct attend_row *rows, int m) {
    struct tile_i16 t;
    const int width = padded_width(d);
    const size_t bytes = block_bytes_i16(d);
    for (; m > 0; rows += TILE_ROWS, m -= TILE_ROWS) {
        int count = m < TILE_ROWS ? m : TILE_ROWS;
        load_tile_i16(&t, d, rows, count);
        for (int i = 0; i < n; i += ATTEND_BLOCK) {
            const struct block b = block_at(d, (const char *)blocks + (size_t)(i / ATTEND_BLOCK) * bytes);
            int in_block = n - i < ATTEND_BLOCK ? n - i : ATTEND_BLOCK, least, most;
            tile_limits(t.limit, rows, count, begin + i, in_block, &least, &most);
            if (most == 0) continue;
            for (int j = 0; j < most; j += AT_ONCE) qk_tile_i16(&t, width, &b, j);
            mask_scores(&t, most, least < most);
            for (int x = 0; x < TILE_ROWS; x += LANES) softmax_rows(&t, most, x);
            for (int c = 0; c < d; c += AT_ONCE) pv_tile_i16(&t, (most + 1) / 2, width, &b, c);
        }
        store_states(t.max, t.sum, t.acc, LOG2_E, d, rows, count);
    }
}

/* The table's entries that are here. */
#define TILE_KERNELS .pack = pack_i16, .block_bytes = block_bytes_i16, .rows = rows_i16
