/* attend_internal.h - the tables behind attend_select(). */
#pragma once

#include "attend.h"

/* Those of other instruction sets than the target's don't exist. */
extern const struct attend_kernels attend_c, attend_avx2, attend_fast_avx2, attend_avx512, attend_avx512vnni,
    attend_neon;
