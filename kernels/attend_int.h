/* attend_int.h - which products of few rows are taken in integers. The files before it define them: qk_q8, qk_q4 and
 * pv_q8, for heads whose blocks come in pairs. */
#pragma once

#include "attend_pass.h"

static void qk_int(enum kv_type type, int R, struct entries *e) {
    const bool in_pairs = e->d % (2 * KV_BLOCK) == 0;
    if (in_pairs && type == KV_Q8_0) qk_q8(R, e);
    else if (in_pairs && type == KV_Q4_0) qk_q4(R, e);
    else qk_any(type, R, e);
}

static void pv_int(enum kv_type type, int R, struct entries *e) {
    const bool in_pairs = e->d % (2 * KV_BLOCK) == 0;
    if (in_pairs && type == KV_Q8_0) pv_q8(R, e);
    else pv_any(type, R, e);
}

#define QK qk_int
#define PV pv_int
