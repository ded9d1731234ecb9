/* kv_row.h - how one key or value of a head is stored.
 *
 * f32 and f16 are what they say. q8_0 and q4_0 are GGML's blocks of 32 values
 * with one f16 scale each: 32 signed bytes; or 16 bytes whose low halves are
 * values 0..15 and whose high halves are 16..31, each plus 8. Unlike GGML's, the
 * codes of all blocks come first, then all scales, so that kernels load each in
 * one piece. A head size that isn't a multiple of 32 ends in a block padded with
 * zeros. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define KV_BLOCK 32

#define KV_MAX_DIM 256 /* largest head size */

enum kv_type { KV_F32, KV_F16, KV_Q8_0, KV_Q4_0 };

/* Bytes of a block's codes, if the type is quantised. */
static inline size_t kv_code_bytes(enum kv_type type) { return type == KV_Q8_0 ? KV_BLOCK : KV_BLOCK / 2; }

/* Where the scale of a block lies in a row of a quantised type. */
static inline size_t kv_scale_at(enum kv_type type, int d, int block) {
    size_t blocks = ((size_t)d + KV_BLOCK - 1) / KV_BLOCK;
    return blocks * kv_code_bytes(type) + (size_t)block * sizeof(uint16_t);
}

/* Bytes of one row of d values. */
static inline size_t kv_row_bytes(enum kv_type type, int d) {
    switch (type) {
    case KV_F32: return (size_t)d * sizeof(float);
    case KV_F16: return (size_t)d * sizeof(uint16_t);
    default: return kv_scale_at(type, d, (d + KV_BLOCK - 1) / KV_BLOCK);
    }
}

/* Converts a row of d values to its stored form and back. The plain C
 * versions; struct attend_kernels has faster ones with the same results. */
void kv_row_store(enum kv_type type, int d, const float *x, uint8_t *row);
void kv_row_load(enum kv_type type, int d, const uint8_t *row, float *out);
