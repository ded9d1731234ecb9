/* attend_avx2.c - attention in float32 with vectors of 8. */
#include "attend_avx2.h"
#include "attend_float.h"
#include "attend_few.h"
#include "attend_tile.h"

const struct attend_kernels attend_avx2 = {
    .isa = "avx2",
    .store = simd_store,
    FEW_KERNELS,
    TILE_KERNELS,
};
