/* quant_neondot.c - the table for NEON with dot-product instructions (Armv8.2). */
#include <arm_neon.h>

static inline int32x4_t dot_bytes(int32x4_t sum, int8x16_t a, int8x16_t b) { return vdotq_s32(sum, a, b); }

#define DOT_LANE(sum, a, b, lane) vdotq_laneq_s32(sum, a, b, lane)

#include "quant_neon.h"

const struct kernels kernels_neondot = NEON_TABLE("neondot");
