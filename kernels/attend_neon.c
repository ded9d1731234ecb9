/* attend_neon.c - attention in float32 with vectors of 4. */
#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

#define OF_ISA(name) attend_##name##_neon
#define LANES 4
#define KEYS 8     /* 8 x 3 sums, 3 rows and a broadcast in 32 registers */
#define CHANNELS_OF(R) 4

typedef float32x4_t vec;

#define v_set vdupq_n_f32
#define v_load vld1q_f32
#define v_store vst1q_f32
#define v_add vaddq_f32
#define v_sub vsubq_f32
#define v_mul vmulq_f32
#define v_max vmaxq_f32
#define v_sum vaddvq_f32
#define v_max_lane vmaxvq_f32

static inline vec v_zero(void) { return vdupq_n_f32(0); }

static inline vec v_fma(vec a, vec b, vec c) { return vfmaq_f32(c, a, b); }

#include "attend_exp2.h"

/* Below -87 the result would leave the normal range. */
static inline vec v_exp(vec x) {
    vec t = v_mul(v_max(x, v_set(-88)), v_set(1.44269504f));
    vec n = vrndnq_f32(t), y = exp2_fraction(v_sub(t, n));
    int32x4_t bits = vaddq_s32(vreinterpretq_s32_f32(y), vshlq_n_s32(vcvtq_s32_f32(n), 23));
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_s32(bits), vcgeq_f32(x, v_set(-87))));
}

static inline vec v_below(vec x, vec index, vec limit) {
    return vbslq_f32(vcltq_f32(index, limit), x, v_set(-1e30f));
}

static inline void v_sum4(vec a, vec b, vec c, vec d, float *out) {
    v_store(out, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)));
}

static inline vec v_load_f16(const uint8_t *p) {
    return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p)));
}

static inline void v_store_f16(uint8_t *p, vec x) { vst1_u8(p, vreinterpret_u8_f16(vcvt_f16_f32(x))); }

static inline vec v_set_f16(const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(h)));
}

static inline uint8x8_t load4(const uint8_t *p) {
    uint32_t x;
    memcpy(&x, p, sizeof x);
    return vreinterpret_u8_u32(vdup_n_u32(x));
}

static inline vec v_load_i8(const uint8_t *p) {
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u8(load4(p))))));
}

static inline vec v_load_low4(const uint8_t *p) {
    return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vand_u8(load4(p), vdup_n_u8(15))))));
}

static inline vec v_load_high4(const uint8_t *p) {
    return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vshr_n_u8(load4(p), 4)))));
}

static inline void v_transpose(vec x[LANES]) {
    float32x4x2_t a = vtrnq_f32(x[0], x[1]), b = vtrnq_f32(x[2], x[3]);
    x[0] = vcombine_f32(vget_low_f32(a.val[0]), vget_low_f32(b.val[0]));
    x[1] = vcombine_f32(vget_low_f32(a.val[1]), vget_low_f32(b.val[1]));
    x[2] = vcombine_f32(vget_high_f32(a.val[0]), vget_high_f32(b.val[0]));
    x[3] = vcombine_f32(vget_high_f32(a.val[1]), vget_high_f32(b.val[1]));
}

#include "attend_float.h"
#include "attend_few.h"
#include "attend_tile.h"

const struct attend_kernels attend_neon = {
    .isa = "neon",
    .store = simd_store,
    FEW_KERNELS,
    TILE_KERNELS,
};
