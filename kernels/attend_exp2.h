/* attend_exp2.h - what v_exp() is made of, for any vector width. */
#pragma once

#include "inline.h"

/* 2^f for |f| <= 1/2; the polynomial's relative error is 2e-7. */
INLINE vec exp2_fraction(vec f) {
    vec y = v_fma(f, v_set(1.535336188e-4f), v_set(1.339887440e-3f));
    y = v_fma(y, f, v_set(9.618437357e-3f));
    y = v_fma(y, f, v_set(5.550332471e-2f));
    y = v_fma(y, f, v_set(2.402264791e-1f));
    y = v_fma(y, f, v_set(6.931472028e-1f));
    return v_fma(y, f, v_set(1.0f));
}
