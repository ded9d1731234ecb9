/* quant_neon.c - the table for NEON without dot-product instructions. */
#include <arm_neon.h>

/* A pair of products fits 16 bits: 2 * 127 * 128 < 2^15. */
static inline int32x4_t dot_bytes(int32x4_t sum, int8x16_t a, int8x16_t b) {
    int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(b)), high = vmull_high_s8(a, b);
    return vpadalq_s16(sum, vpaddq_s16(low, high));
}

#define DOT_LANE(sum, a, b, lane) \
    dot_bytes(sum, a, vreinterpretq_s8_s32(vdupq_laneq_s32(vreinterpretq_s32_s8(b), lane)))

#include "quant_neon.h"

const struct kernels kernels_neon = NEON_TABLE("neon");
