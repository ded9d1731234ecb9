/* attend_fast_avx2.c - as attend_avx2.c, but decoding takes the products of q8_0
 * keys with queries in 16 bits and of q4_0 keys with queries in 8, and sums q8_0
 * values with weights of 16 bits; prompts take both in 16 bits. */
#include "attend_avx2.h"
#include "attend_pv_avx2.h"
#include "attend_int.h"
#include "attend_few.h"
#include "attend_tile_i16_avx2.h"

const struct attend_kernels attend_fast_avx2 = {
    .isa = "avx2",
    .store = simd_store,
    FEW_KERNELS,
    TILE_KERNELS,
};
