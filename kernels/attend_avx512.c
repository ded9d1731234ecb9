/* attend_avx512.c - attention in float32 with vectors of 16. */
#include "attend_avx512.h"
#include "attend_float.h"
#include "attend_few.h"
#include "attend_tile.h"

const struct attend_kernels attend_avx512 = {
    .isa = "avx512",
    .store = simd_store,
    FEW_KERNELS,
    TILE_KERNELS,
};
