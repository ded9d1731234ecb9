/* kv_row.h - how one key or value of a head is stored.
 *
 * f32 and f16 are what they say. q8_0 and q4_0 are GGML's blocks of 32 values
 * with one f16 scale each: scale, 32 signed bytes; or scale, 16 bytes whose
 * low halves are values 0..15 and whose high halves are 16..31, each plus 8.
 * A head size that isn't a multiple of 32 ends in a block padded with zeros. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define KV_BLOCK 32
#define KV_Q8_0_BYTES 34 /* per block */
#define KV_Q4_0_BYTES 18

#define KV_MAX_DIM 256 /* largest head size */

enum kv_type { KV_F32, KV_F16, KV_Q8_0, KV_Q4_0 };

/* Bytes of one row of d values. */
static inline size_t kv_row_bytes(enum kv_type type, int d) {
    size_t n = (size_t)d, blocks = (n + KV_BLOCK - 1) / KV_BLOCK;
    switch (type) {
    case KV_F32: return n * sizeof(float);
    case KV_F16: return n * sizeof(uint16_t);
    case KV_Q8_0: return blocks * KV_Q8_0_BYTES;
    case KV_Q4_0: return blocks * KV_Q4_0_BYTES;
    }
    return 0;
}

/* Converts a row of d values to its stored form and back. The plain C
 * versions; struct attend_kernels has faster ones with the same results. */
void kv_row_store(enum kv_type type, int d, const float *x, uint8_t *row);
void kv_row_load(enum kv_type type, int d, const uint8_t *row, float *out);
