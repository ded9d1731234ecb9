/* sparse_neon.c - sparse.h with vectors of 4. */
#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

#define LANES 4

typedef float32x4_t vec;
typedef int32x4_t ivec;

#define v_set vdupq_n_f32
#define v_load vld1q_f32
#define v_store vst1q_f32
#define v_add vaddq_f32
#define v_sub vsubq_f32
#define v_mul vmulq_f32
#define v_max vmaxq_f32
#define v_abs vabsq_f32
#define v_sum vaddvq_f32
#define v_max_lane vmaxvq_f32

#define i_and vandq_s32
#define i_add vaddq_s32
#define i_four vdupq_n_s32
#define i_float vcvtq_f32_s32
#define i_shift(x, n) vreinterpretq_s32_u16(vshrq_n_u16(vreinterpretq_u16_s32(x), n))

static inline vec v_zero(void) { return vdupq_n_f32(0); }
static inline vec v_fma(vec a, vec b, vec c) { return vfmaq_f32(c, a, b); }

static inline unsigned v_reached(vec x, vec least) {
    static const uint32_t bits[4] = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(vcgeq_f32(x, least), vld1q_u32(bits)));
}

static inline void v_store_i8(int32_t *to, vec x) {
    int16x4_t words = vqmovn_s32(vcvtnq_s32_f32(x));
    *to = vget_lane_s32(vreinterpret_s32_s8(vqmovn_s16(vcombine_s16(words, words))), 0);
}

static inline ivec i_zero(void) { return vdupq_n_s32(0); }
static inline ivec i_load(const uint8_t *p) { return vreinterpretq_s32_u8(vld1q_u8(p)); }
static inline ivec i_bytes(int x) { return vreinterpretq_s32_s8(vdupq_n_s8((int8_t)x)); }

/* The unsigned bytes are codes, so small that they can be taken for signed ones. */
static inline ivec i_dot4(ivec sum, ivec u, ivec s) {
    int8x16_t a = vreinterpretq_s8_s32(u), b = vreinterpretq_s8_s32(s);
    int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(b)), high = vmull_high_s8(a, b);
    return vpadalq_s16(sum, vpaddq_s16(low, high));
}

#include "sparse_simd.h"

const struct sparse_kernels sparse_neon = SPARSE_KERNELS("neon");
