/* quants.h - the quantised weight formats, all seen as w = d*(u - zero) + m.
 *
 * u is an unsigned byte, d and m are float32 and belong to a group of 16 or 32
 * elements, zero is a constant of the format, and m exists in some formats
 * only. All of it is in this header, because each instruction set's GEMM includes
 * the unpackers and gets its own copy. Byte order is little-endian.
 *
 * Formats: llama.cpp, ggml/src/ggml-common.h and ggml-quants.c. */
#pragma once

#include <string.h>

#include "internal.h"

#if defined(__F16C__) || defined(__AVX2__)
#include <immintrin.h>
#endif

/* Unpacks n blocks: u[n * block], and of each of the n * block/group groups d and m (untouched where the format has
 * no m), `stride` floats apart. */
typedef void (*unpack_fn)(const uint8_t *blocks, int n, uint8_t *u, float *d, float *m, int stride);

struct quant_format {
    int block;    /* elements in a block */
    int bytes;    /* bytes in a block */
    int group;    /* elements that share d and m */
    int zero;     /* subtracted from u */
    bool has_min; /* has m */
    unpack_fn unpack;
};

#if defined(__F16C__)
static inline float half_to_float(uint16_t h) { return _cvtsh_ss(h); }
#elif defined(__aarch64__)
static inline float half_to_float(uint16_t h) {
    __fp16 f;
    memcpy(&f, &h, sizeof f);
    return f;
}
#else
static inline float half_to_float(uint16_t h) { return f16_to_f32(h); }
#endif

static inline float read_f16(const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return half_to_float(h);
}

/* Bytes are taken eight at a time, in the integers that every CPU has. */
static inline uint64_t load_eight(const uint8_t *p) {
    uint64_t x;
    memcpy(&x, p, sizeof x);
    return x;
}

static inline void store_eight(uint8_t *p, uint64_t x) { memcpy(p, &x, sizeof x); }

#define EVERY_BYTE(x) (UINT64_C(0x0101010101010101) * (x))

/* Sixteen bytes of nibbles: the low ones are elements 0-15, the high ones 16-31. */
static inline void unpack_nibbles(const uint8_t *qs, uint8_t *u) {
#if defined(__AVX2__)
    __m256i twice = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)qs));
    __m256i nibbles = _mm256_srlv_epi64(twice, _mm256_setr_epi64x(0, 0, 4, 4));
    _mm256_storeu_si256((__m256i *)u, _mm256_and_si256(nibbles, _mm256_set1_epi8(15)));
#else
    uint64_t a = load_eight(qs), b = load_eight(qs + 8);
    store_eight(u, a & EVERY_BYTE(15));
    store_eight(u + 8, b & EVERY_BYTE(15));
    store_eight(u + 16, a >> 4 & EVERY_BYTE(15));
    store_eight(u + 24, b >> 4 & EVERY_BYTE(15));
#endif
}

/* The fifth bits of 32 elements, element i's at bit i: byte i of eight keeps bit i
 * of a copy of theirs, and the addition carries any bit to the top. */
static inline void add_fifth_bits(const uint8_t *qh, uint8_t *u) {
    for (int i = 0; i < 4; i++) {
        uint64_t own = EVERY_BYTE(qh[i]) & UINT64_C(0x8040201008040201);
        uint64_t set = (own + EVERY_BYTE(0x7f)) >> 7 & EVERY_BYTE(1);
        store_eight(u + 8 * i, load_eight(u + 8 * i) | set << 4);
    }
}

/* Q4_0: f16 d, 16 bytes of nibbles. */
static inline void unpack_q4_0(const uint8_t *block, uint8_t *u, float *d, float *m, int stride) {
    (void)m, (void)stride;
    d[0] = read_f16(block);
    unpack_nibbles(block + 2, u);
}

/* Q4_1: f16 d, f16 m, 16 bytes of nibbles. */
static inline void unpack_q4_1(const uint8_t *block, uint8_t *u, float *d, float *m, int stride) {
    (void)stride;
    d[0] = read_f16(block);
    m[0] = read_f16(block + 2);
    unpack_nibbles(block + 4, u);
}

/* Q5_0: f16 d, 4 bytes of fifth bits, 16 bytes of nibbles. */
static inline void unpack_q5_0(const uint8_t *block, uint8_t *u, float *d, float *m, int stride) {
    (void)m, (void)stride;
    d[0] = read_f16(block);
    unpack_nibbles(block + 6, u);
    add_fifth_bits(block + 2, u);
}

/* Q5_1: f16 d, f16 m, 4 bytes of fifth bits, 16 bytes of nibbles. */
static inline void unpack_q5_1(const uint8_t *block, uint8_t *u, float *d, float *m, int stride) {
    (void)stride;
    d[0] = read_f16(block);
    m[0] = read_f16(block + 2);
    unpack_nibbles(block + 8, u);
    add_fifth_bits(block + 4, u);
}

/* Q8_0: f16 d, 32 signed bytes. */
static inline void unpack_q8_0(const uint8_t *block, uint8_t *u, float *d, float *m, int stride) {
    (void)m, (void)stride;
    d[0] = read_f16(block);
    for (int i = 0; i < 32; i += 8) store_eight(u + i, load_eight(block + 2 + i) ^ EVERY_BYTE(0x80));
}

/* The 6-bit scales and mins of the eight groups of a Q4_K or Q5_K block, packed
 * into 12 bytes: the first four of each lie in the low bits of bytes 0-3 and
 * 4-7, whose top bits complete the nibbles in bytes 8-11 to the other four. */
static inline void unpack_k_scales(const uint8_t *block, float *d, float *m, int stride) {
    float scale = read_f16(block), min = read_f16(block + 2);
    const uint8_t *s = block + 4;
    for (int i = 0; i < 4; i++) {
        d[i * stride] = scale * (float)(s[i] & 63);
        m[i * stride] = -(min * (float)(s[i + 4] & 63));
        d[(i + 4) * stride] = scale * (float)((s[i + 8] & 15) | s[i] >> 6 << 4);
        m[(i + 4) * stride] = -(min * (float)(s[i + 8] >> 4 | s[i + 4] >> 6 << 4));
    }
}

/* Q4_K: f16 scale, f16 min, 12 bytes of scales, 4 x 32 bytes of nibbles: the
 * low ones are a group, the high ones the next. */
static inline void unpack_q4_k(const uint8_t *block, uint8_t *u, float *d, float *m, int stride) {
    unpack_k_scales(block, d, m, stride);
    const uint8_t *qs = block + 16;
    for (int g = 0; g < 4; g++) {
        for (int i = 0; i < 32; i += 8) {
            uint64_t q = load_eight(qs + 32 * g + i);
            store_eight(u + 64 * g + i, q & EVERY_BYTE(15));
            store_eight(u + 64 * g + 32 + i, q >> 4 & EVERY_BYTE(15));
        }
    }
}

/* Q5_K: as Q4_K, with 32 bytes before the nibbles that hold the fifth bits of
 * group g in bit g. */
static inline void unpack_q5_k(const uint8_t *block, uint8_t *u, float *d, float *m, int stride) {
    unpack_k_scales(block, d, m, stride);
    const uint8_t *qh = block + 16, *qs = block + 48;
    for (int g = 0; g < 4; g++) {
        for (int i = 0; i < 32; i += 8) {
            uint64_t q = load_eight(qs + 32 * g + i), fifth = load_eight(qh + i) >> (2 * g);
            store_eight(u + 64 * g + i, (q & EVERY_BYTE(15)) | (fifth & EVERY_BYTE(1)) << 4);
            store_eight(u + 64 * g + 32 + i, (q >> 4 & EVERY_BYTE(15)) | (fifth & EVERY_BYTE(2)) << 3);
        }
    }
}

/* Q6_K: 128 bytes of low nibbles, 64 bytes of upper bit pairs, 16 signed
 * scales, f16 d. Each half of the block has 64 + 32 bytes of its own. */
static inline void unpack_q6_k(const uint8_t *block, uint8_t *u, float *d, float *m, int stride) {
    (void)m;
    const int8_t *scales = (const int8_t *)block + 192;
    float scale = read_f16(block + 208);
    for (int i = 0; i < 16; i++) d[i * stride] = scale * (float)scales[i];
    for (int h = 0; h < 2; h++) {
        const uint8_t *ql = block + 64 * h, *qh = block + 128 + 32 * h;
        uint8_t *o = u + 128 * h;
        for (int i = 0; i < 32; i += 8) {
            uint64_t a = load_eight(ql + i), b = load_eight(ql + 32 + i), top = load_eight(qh + i);
            store_eight(o + i, (a & EVERY_BYTE(15)) | (top & EVERY_BYTE(3)) << 4);
            store_eight(o + 32 + i, (b & EVERY_BYTE(15)) | (top & EVERY_BYTE(12)) << 2);
            store_eight(o + 64 + i, (a >> 4 & EVERY_BYTE(15)) | (top & EVERY_BYTE(48)));
            store_eight(o + 96 + i, (b >> 4 & EVERY_BYTE(15)) | (top >> 2 & EVERY_BYTE(48)));
        }
    }
}

#define UNPACK_BLOCKS(format, block, bytes, group)                                                        \
    static inline void unpack_blocks_##format(const uint8_t *restrict blocks, int n, uint8_t *restrict u, \
                                              float *restrict d, float *restrict m, int stride) {         \
        for (int i = 0; i < n; i++) {                                                                     \
            const int g = i * (block / group) * stride;                                                   \
            unpack_##format(blocks + i * bytes, u + i * block, d + g, m + g, stride);                     \
        }                                                                                                 \
    }

UNPACK_BLOCKS(q4_0, 32, 18, 32)
UNPACK_BLOCKS(q4_1, 32, 20, 32)
UNPACK_BLOCKS(q5_0, 32, 22, 32)
UNPACK_BLOCKS(q5_1, 32, 24, 32)
UNPACK_BLOCKS(q8_0, 32, 34, 32)
UNPACK_BLOCKS(q4_k, 256, 144, 32)
UNPACK_BLOCKS(q5_k, 256, 176, 32)
UNPACK_BLOCKS(q6_k, 256, 210, 16)

static const struct quant_format quant_formats[TENSOR_TYPES] = {
    [TENSOR_Q4_0] = {32, 18, 32, 8, false, unpack_blocks_q4_0},
    [TENSOR_Q4_1] = {32, 20, 32, 0, true, unpack_blocks_q4_1},
    [TENSOR_Q5_0] = {32, 22, 32, 16, false, unpack_blocks_q5_0},
    [TENSOR_Q5_1] = {32, 24, 32, 0, true, unpack_blocks_q5_1},
    [TENSOR_Q8_0] = {32, 34, 32, 128, false, unpack_blocks_q8_0},
    [TENSOR_Q4_K] = {256, 144, 32, 0, true, unpack_blocks_q4_k},
    [TENSOR_Q5_K] = {256, 176, 32, 0, true, unpack_blocks_q5_k},
    [TENSOR_Q6_K] = {256, 210, 16, 32, false, unpack_blocks_q6_k},
};

/* NULL for F32, F16 and BF16. */
static inline const struct quant_format *quant_format(enum tensor_type type) {
    return quant_formats[type].block ? &quant_formats[type] : NULL;
}
