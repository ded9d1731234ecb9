/* attend_avx2.c - attention in float32 with vectors of 8. */
#include "attend_avx2.h"
#include "attend_tile.h"

#define QK qk_any
#define PV pv_any
#include "attend_few.h"

const struct attend_kernels attend_avx2 = {
    .isa = "avx2",
    .store = simd_store,
    .load = simd_load,
    .range = simd_range,
    .list = simd_list,
    .scores = simd_scores,
    .score_list = simd_score_list,
    .add_softmax = simd_add_softmax,
    .pack = simd_pack,
    .block_bytes = simd_block_bytes,
    .rows = simd_rows,
};
