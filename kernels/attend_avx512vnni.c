/* attend_avx512vnni.c - attention in 8-bit integers, where dpbusd does four
 * multiply-adds in the place of one.
 *
 * Prompts follow SageAttention (Zhang et al. 2024): queries and keys are
 * quantised to 8 bits per part of 64 (or 32) channels, values to 8 bits per
 * channel over a block of 64 entries, weights to 0..255 relative to the row's
 * largest in the block. All sums are in int32, the softmax is in float32. Some
 * channels of keys are far larger than others; so that they don't set the
 * scale, queries and keys are first rotated by a Hadamard matrix, as in QuaRot
 * (Ashkboos et al. 2024), which leaves their products as they are. The float32
 * twin of everything here is attend_tile.h.
 *
 * Decoding takes the products of q8_0 and q4_0 keys with queries in 8 bits,
 * and sums q8_0 values with weights of 16 bits. */
#include "attend_avx512.h"
#include "attend_pv_avx512vnni.h"
#include "attend_int.h"
#include "attend_few.h"

#define QUADS (ATTEND_BLOCK / 4)  /* groups of 4 entries */
#define PART 64                   /* channels that share a scale, or half as many */
#define MAX_PARTS (KV_MAX_DIM / (PART / 2))
#define P_ONE 255.0f              /* the weight 1 */

static int round_up(int n, int to) { return (n + to - 1) / to * to; }

/* How the channels of a head are cut up. */
struct cut {
    int width; /* channels, rounded up to whole parts */
    int part;  /* channels of a part */
    int parts;
};

INLINE struct cut cut_head(int d) {
    int part = d % PART ? PART / 2 : PART;
    return (struct cut){.width = round_up(d, part), .part = part, .parts = round_up(d, part) / part};
}

/* Multiplies 2 or 4 vectors, as one, by a Hadamard matrix (of 1 and -1). */
INLINE void hadamard(vec *x, int n) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    vec sign[4];
    for (int bit = 0; bit < 4; bit++) {
        __mmask16 set = _mm512_test_epi32_mask(lane, _mm512_set1_epi32(1 << bit));
        sign[bit] = _mm512_mask_blend_ps(set, v_set(1), v_set(-1));
    }
    for (int i = 0; i < n; i++) { /* in each step, lanes that differ in one bit: a, b to a + b, a - b */
        x[i] = v_fma(x[i], sign[0], _mm512_permute_ps(x[i], 0xb1));
        x[i] = v_fma(x[i], sign[1], _mm512_permute_ps(x[i], 0x4e));
        x[i] = v_fma(x[i], sign[2], _mm512_shuffle_f32x4(x[i], x[i], 0xb1));
        x[i] = v_fma(x[i], sign[3], _mm512_shuffle_f32x4(x[i], x[i], 0x4e));
    }
    for (int step = 1; step < n; step *= 2)
        for (int i = 0; i < n; i++)
            if (!(i & step)) {
                vec a = x[i], b = x[i + step];
                x[i] = v_add(a, b);
                x[i + step] = v_sub(a, b);
            }
}

/* Rotates and quantises the `part` channels at x; bytes plus `excess` to out. Returns the scale. */
static float quantize_part(const float *x, int part, int excess, void *out) {
    vec y[PART / LANES];
    __m512i codes[PART / LANES];
    int n = part / LANES;
    for (int i = 0; i < n; i++) y[i] = v_load(x + i * LANES);
    hadamard(y, n);
    float scale = quantize(y, n, codes);
    for (int i = 0; i < n; i++) {
        __m512i code = _mm512_add_epi32(codes[i], _mm512_set1_epi32(excess));
        _mm_storeu_si128((__m128i *)out + i, _mm512_cvtepi32_epi8(code));
    }
    return scale;
}

/* ---- packed blocks ------------------------------------------------------------------
 *
 * Of a head cut into `parts`, `width` channels in all:
 *
 *     int8_t  v[QUADS][width][4]            by groups of 4 entries
 *     int8_t  k[ATTEND_BLOCK][width]
 *     float   k_scale[ATTEND_BLOCK][parts]
 *     int32_t k_offset[ATTEND_BLOCK][parts] -128 * sum of k, as queries are stored plus 128
 *     float   v_scale[width]                divided by P_ONE
 */
struct block {
    int8_t *v, *k;
    float *k_scale;
    int32_t *k_offset;
    float *v_scale;
};

static size_t block_bytes(int d) {
    struct cut cut = cut_head(d);
    size_t width = (size_t)cut.width, parts = (size_t)cut.parts;
    return 2 * ATTEND_BLOCK * width + 8 * ATTEND_BLOCK * parts + 4 * width;
}

static struct block block_at(int d, const void *base) {
    struct cut cut = cut_head(d);
    size_t width = (size_t)cut.width, parts = (size_t)cut.parts;
    char *p = (char *)base;
    struct block b = {.v = (int8_t *)p, .k = (int8_t *)p + ATTEND_BLOCK * width};
    b.k_scale = (float *)(p + 2 * ATTEND_BLOCK * width);
    b.k_offset = (int32_t *)(b.k_scale + ATTEND_BLOCK * parts);
    b.v_scale = (float *)(b.k_offset + ATTEND_BLOCK * parts);
    return b;
}

static void pack_key(const struct kv_view *kv, int entry, const struct block *b, int i) {
    struct cut cut = cut_head(kv->d);
    int8_t *k = b->k + i * cut.width;
    float x[KV_MAX_DIM];
    simd_load(kv->type_k, kv->d, kv->k + (size_t)entry * kv->k_row_bytes, x);
    for (int c = kv->d; c < cut.width; c++) x[c] = 0;
    for (int p = 0; p < cut.parts; p++, k += cut.part) {
        b->k_scale[i * cut.parts + p] = quantize_part(x + p * cut.part, cut.part, 0, k);
        __m512i sum = _mm512_setzero_si512(), ones = _mm512_set1_epi8(1);
        for (int c = 0; c < cut.part; c += 32) {
            __m256i x32 = _mm256_loadu_si256((const __m256i *)(k + c));
            sum = _mm512_dpbusd_epi32(sum, ones, _mm512_zextsi256_si512(x32));
        }
        b->k_offset[i * cut.parts + p] = -128 * _mm512_reduce_add_epi32(sum);
    }
}

/* 16 channels of 64 values at a time: what they are scaled by, then the integers, 4 entries to a lane. */
static void pack_values(int width, const float *x, const struct block *b) {
    for (int c = 0; c < width; c += LANES) {
        vec most = v_zero();
        for (int i = 0; i < ATTEND_BLOCK; i++) most = v_max(most, _mm512_abs_ps(v_load(x + i * width + c)));
        __mmask16 any = _mm512_cmp_ps_mask(most, v_zero(), _CMP_GT_OQ);
        vec inverse = _mm512_maskz_div_ps(any, v_set(127), most);
        v_store(b->v_scale + c, v_mul(most, v_set(1 / (127 * P_ONE))));
        for (int quad = 0; quad < QUADS; quad++) {
            __m512i q[4];
            UNROLL for (int i = 0; i < 4; i++)
                q[i] = _mm512_cvtps_epi32(v_mul(v_load(x + (4 * quad + i) * width + c), inverse));
            __m512i low = _mm512_mask_blend_epi8(0xaaaaaaaaaaaaaaaa, q[0], _mm512_slli_epi32(q[1], 8));
            __m512i high = _mm512_mask_blend_epi8(0xaaaaaaaaaaaaaaaa, q[2], _mm512_slli_epi32(q[3], 8));
            __m512i all = _mm512_mask_blend_epi16(0xaaaaaaaa, low, _mm512_slli_epi32(high, 16));
            _mm512_storeu_si512(b->v + ((size_t)quad * (size_t)width + (size_t)c) * 4, all);
        }
    }
}

static void pack(const struct kv_view *kv, int begin, int n, void *base) {
    int width = cut_head(kv->d).width;
    struct block b = block_at(kv->d, base);
    _Alignas(64) float v[ATTEND_BLOCK * KV_MAX_DIM]; /* [ATTEND_BLOCK, width] */
    for (int i = 0; i < n; i++) {
        pack_key(kv, begin + i, &b, i);
        simd_load(kv->type_v, kv->d, kv->v + (size_t)(begin + i) * kv->v_row_bytes, v + i * width);
        for (int c = kv->d; c < width; c++) v[i * width + c] = 0;
    }
    memset(v + n * width, 0, (size_t)((ATTEND_BLOCK - n) * width) * sizeof *v);
    pack_values(width, v, &b);
}

/* ---- many rows ------------------------------------------------------------------------ */

#define KEYS_I8 4 /* 4 x 3 int32 sums, as many float sums, 3 queries and a key in 32 registers */

struct tile_i8 {
    _Alignas(64) uint8_t q[KV_MAX_DIM / 4][TILE_ROWS][4];  /* plus 128 */
    _Alignas(64) float q_scale[MAX_PARTS][TILE_ROWS];      /* times log2 e: scores and maxima are for 2^x */
    _Alignas(64) uint8_t p[QUADS][TILE_ROWS][4];           /* weights, P_ONE for the largest */
    _Alignas(64) float s[ATTEND_BLOCK][TILE_ROWS];         /* scores */
    _Alignas(64) float acc[KV_MAX_DIM][TILE_ROWS];
    _Alignas(64) float max[TILE_ROWS], sum[TILE_ROWS], limit[TILE_ROWS];
    _Alignas(64) float shrink[TILE_ROWS], grow[TILE_ROWS]; /* of the sums so far; of this block's */
};

/* Four bytes for all lanes. */
INLINE __m512i broadcast4(const void *p) {
    int32_t x;
    memcpy(&x, p, sizeof x);
    return _mm512_set1_epi32(x);
}

/* Scores of all rows against KEYS_I8 keys from key i on. */
INLINE void qk_tile_i8(struct tile_i8 *t, int parts, int part, const struct block *b, int i) {
    int width = parts * part;
    const int8_t *k = b->k + i * width;
    vec s[KEYS_I8][VECS];
    UNROLL for (int j = 0; j < KEYS_I8; j++)
        UNROLL for (int x = 0; x < VECS; x++) s[j][x] = v_zero();
    for (int p = 0; p < parts; p++) {
        ints sum[KEYS_I8][VECS];
        UNROLL for (int j = 0; j < KEYS_I8; j++) {
            ints offset = (ints)_mm512_set1_epi32(b->k_offset[(i + j) * parts + p]);
            UNROLL for (int x = 0; x < VECS; x++) sum[j][x] = offset;
        }
        for (int c = p * part / 4; c < (p + 1) * part / 4; c++) {
            __m512i q[VECS];
            UNROLL for (int x = 0; x < VECS; x++) q[x] = _mm512_load_si512(t->q[c][x * LANES]);
            UNROLL for (int j = 0; j < KEYS_I8; j++) {
                __m512i y = broadcast4(k + j * width + 4 * c);
                UNROLL for (int x = 0; x < VECS; x++) sum[j][x] = dot4(sum[j][x], q[x], y);
            }
        }
        UNROLL for (int j = 0; j < KEYS_I8; j++) {
            vec scale = v_set(b->k_scale[(i + j) * parts + p]);
            UNROLL for (int x = 0; x < VECS; x++) {
                vec y = v_mul(_mm512_cvtepi32_ps((__m512i)sum[j][x]), scale);
                s[j][x] = v_fma(y, v_load(t->q_scale[p] + x * LANES), s[j][x]);
            }
        }
    }
    UNROLL for (int j = 0; j < KEYS_I8; j++)
        UNROLL for (int x = 0; x < VECS; x++) v_store(t->s[i + j] + x * LANES, s[j][x]);
}

/* P_ONE * 2^x for x <= 0 as an integer: a polynomial of relative error 1e-4 will do. */
INLINE __m512i exp2_i8(vec x) {
    vec f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); /* x - floor(x) */
    vec y = v_fma(f, v_set(7.802452e-2f * P_ONE), v_set(2.2606718e-1f * P_ONE));
    y = v_fma(y, f, v_set(6.9583352e-1f * P_ONE));
    y = v_fma(y, f, v_set(9.9992522e-1f * P_ONE));
    return _mm512_cvtps_epi32(_mm512_scalef_ps(y, x)); /* times 2^floor(x) */
}

/* Weights of the first n entries of the block, and of none up to a group of 4. */
INLINE void softmax_tile_i8(struct tile_i8 *t, int n, bool masked) {
    const __m512i ones = _mm512_set1_epi8(1);
    vec top[VECS], next[VECS]; /* of even and of odd entries: a chain of maxima is slow */
    UNROLL for (int x = 0; x < VECS; x++) top[x] = next[x] = v_set(NEVER);
    if (masked)
        for (int i = 0; i < n; i++)
            UNROLL for (int x = 0; x < VECS; x++) {
                float *s = t->s[i] + x * LANES;
                v_store(s, v_below(v_load(s), v_set((float)i), v_load(t->limit + x * LANES)));
            }
    for (int i = n; i % 4; i++)
        UNROLL for (int x = 0; x < VECS; x++) v_store(t->s[i] + x * LANES, v_set(NEVER));
    for (int i = 0; i < n; i += 2)
        UNROLL for (int x = 0; x < VECS; x++) {
            top[x] = v_max(top[x], v_load(t->s[i] + x * LANES));
            next[x] = v_max(next[x], v_load(t->s[i + 1] + x * LANES));
        }
    UNROLL for (int v = 0; v < VECS; v++) {
        int x = v * LANES;
        top[v] = v_max(top[v], next[v]);
        vec floor = v_max(top[v], v_set(NEVER / 2)); /* a row that sees nothing here gets weights of zero */
        __m512i sum = _mm512_setzero_si512();
        for (int i = 0; i < n; i += 4) {
            __m512i w[4];
            UNROLL for (int j = 0; j < 4; j++) w[j] = exp2_i8(v_sub(v_load(t->s[i + j] + x), floor));
            __m512i low = _mm512_or_si512(w[0], _mm512_slli_epi32(w[1], 8));
            __m512i high = _mm512_or_si512(w[2], _mm512_slli_epi32(w[3], 8));
            __m512i all = _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
            sum = _mm512_dpbusd_epi32(sum, all, ones);
            _mm512_store_si512(t->p[i / 4][x], all);
        }
        join_block(t->max + x, t->sum + x, t->shrink + x, t->grow + x, top[v],
                   v_mul(_mm512_cvtepi32_ps(sum), v_set(1 / P_ONE)));
    }
}

/* KEYS channels of the weighted sums, from channel c on: acc = acc * shrink + grow * sum of p_i v_i. */
INLINE void pv_tile_i8(struct tile_i8 *t, int quads, int width, const struct block *b, int c) {
    ints sum[KEYS][VECS];
    UNROLL for (int j = 0; j < KEYS; j++)
        UNROLL for (int x = 0; x < VECS; x++) sum[j][x] = (ints){0};
    for (int i = 0; i < quads; i++) {
        const int8_t *v = b->v + ((size_t)i * (size_t)width + (size_t)c) * 4;
        __m512i p[VECS];
        UNROLL for (int x = 0; x < VECS; x++) p[x] = _mm512_load_si512(t->p[i][x * LANES]);
        UNROLL for (int j = 0; j < KEYS; j++) {
            __m512i y = broadcast4(v + 4 * j);
            UNROLL for (int x = 0; x < VECS; x++) sum[j][x] = dot4(sum[j][x], p[x], y);
        }
    }
    UNROLL for (int j = 0; j < KEYS; j++) {
        vec scale = v_set(b->v_scale[c + j]);
        UNROLL for (int x = 0; x < VECS; x++) {
            float *acc = t->acc[c + j] + x * LANES;
            vec old = v_mul(v_load(acc), v_load(t->shrink + x * LANES));
            vec y = v_mul(_mm512_cvtepi32_ps((__m512i)sum[j][x]), scale);
            v_store(acc, v_fma(y, v_load(t->grow + x * LANES), old));
        }
    }
}

static void load_tile_i8(struct tile_i8 *t, int d, const struct attend_row *rows, int m) {
    struct cut cut = cut_head(d);
    for (int r = 0; r < TILE_ROWS; r++) {
        const struct attend_row *row = &rows[r < m ? r : 0]; /* lanes without a row repeat the first */
        float q[KV_MAX_DIM];
        memcpy(q, row->q, (size_t)d * sizeof *q);
        for (int c = d; c < cut.width; c++) q[c] = 0;
        for (int p = 0; p < cut.parts; p++) {
            uint8_t bytes[PART];
            float scale = quantize_part(q + p * cut.part, cut.part, 128, bytes);
            t->q_scale[p][r] = scale * (LOG2_E / (float)cut.part); /* a Hadamard matrix squared is its size */
            for (int i = 0; i < cut.part; i += 4) memcpy(t->q[(p * cut.part + i) / 4][r], bytes + i, 4);
        }
    }
    load_states(t->max, t->sum, t->acc, LOG2_E, d, cut.width, rows, m);
}

static void attend_rows(int d, const void *blocks, int begin, int n, const struct attend_row *rows, int m) {
    struct tile_i8 t;
    struct cut cut = cut_head(d);
    size_t bytes = block_bytes(d);
    for (; m > 0; rows += TILE_ROWS, m -= TILE_ROWS) {
        int count = m < TILE_ROWS ? m : TILE_ROWS;
        load_tile_i8(&t, d, rows, count);
        for (int i = 0; i < n; i += ATTEND_BLOCK) {
            struct block b = block_at(d, (const char *)blocks + (size_t)(i / ATTEND_BLOCK) * bytes);
            int in_block = n - i < ATTEND_BLOCK ? n - i : ATTEND_BLOCK, least, most;
            tile_limits(t.limit, rows, count, begin + i, in_block, &least, &most);
            if (most == 0) continue;
            if (cut.parts == 1) for (int j = 0; j < most; j += KEYS_I8) qk_tile_i8(&t, 1, cut.part, &b, j);
            else for (int j = 0; j < most; j += KEYS_I8) qk_tile_i8(&t, cut.parts, cut.part, &b, j);
            if (least == most) softmax_tile_i8(&t, most, false);
            else softmax_tile_i8(&t, most, true);
            for (int c = 0; c < d; c += KEYS) pv_tile_i8(&t, (most + 3) / 4, cut.width, &b, c);
        }
        store_states(t.max, t.sum, t.acc, LOG2_E, d, rows, count);
    }
}

/* ---- storing -------------------------------------------------------------------------- */

static void store_row(enum kv_type type, int d, const float *x, uint8_t *row) {
    if (type != KV_Q8_0 || d % KV_BLOCK) {
        simd_store(type, d, x, row);
        return;
    }
    for (int c = 0; c < d; c += KV_BLOCK) {
        vec y[2] = {v_load(x + c), v_load(x + c + LANES)};
        __m512i codes[2];
        __m128 scale = _mm_set_ss(quantize(y, 2, codes));
        uint16_t half = (uint16_t)_mm_extract_epi16(_mm_cvtps_ph(scale, _MM_FROUND_TO_NEAREST_INT), 0);
        for (int i = 0; i < 2; i++)
            _mm_storeu_si128((__m128i *)(row + c) + i, _mm512_cvtepi32_epi8(codes[i]));
        memcpy(row + kv_scale_at(KV_Q8_0, d, c / KV_BLOCK), &half, sizeof half);
    }
}

const struct attend_kernels attend_avx512vnni = {
    .isa = "avx512vnni",
    .store = store_row,
    FEW_KERNELS,
    .pack = pack,
    .block_bytes = block_bytes,
    .rows = attend_rows,
};
