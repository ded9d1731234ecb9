#include "kv_row.h"

#include <math.h>
#include <string.h>

#include "kernels.h"

static void store_f16(uint8_t *at, float x) {
    uint16_t h = f32_to_f16(x);
    memcpy(at, &h, sizeof h);
}

static float load_f16(const uint8_t *at) {
    uint16_t h;
    memcpy(&h, at, sizeof h);
    return f16_to_f32(h);
}

static void store_q8_0(const float *x, uint8_t *block) {
    float amax = 0;
    for (int i = 0; i < KV_BLOCK; i++) amax = fmaxf(amax, fabsf(x[i]));
    float scale = amax / 127, inverse = scale > 0 ? 1 / scale : 0;
    store_f16(block, scale);
    for (int i = 0; i < KV_BLOCK; i++) block[2 + i] = (uint8_t)(int8_t)lrintf(x[i] * inverse);
}

static void load_q8_0(const uint8_t *block, float *x) {
    float scale = load_f16(block);
    for (int i = 0; i < KV_BLOCK; i++) x[i] = scale * (float)(int8_t)block[2 + i];
}

/* The value of largest magnitude becomes -8, so that all 16 codes are used. */
static void store_q4_0(const float *x, uint8_t *block) {
    float extreme = 0;
    for (int i = 0; i < KV_BLOCK; i++)
        if (fabsf(x[i]) > fabsf(extreme)) extreme = x[i];
    float scale = extreme / -8, inverse = scale != 0 ? 1 / scale : 0;
    store_f16(block, scale);
    for (int i = 0; i < KV_BLOCK / 2; i++) {
        int low = (int)(x[i] * inverse + 8.5f), high = (int)(x[i + KV_BLOCK / 2] * inverse + 8.5f);
        block[2 + i] = (uint8_t)((low > 15 ? 15 : low) | (high > 15 ? 15 : high) << 4);
    }
}

static void load_q4_0(const uint8_t *block, float *x) {
    float scale = load_f16(block);
    for (int i = 0; i < KV_BLOCK / 2; i++) {
        x[i] = scale * (float)((block[2 + i] & 15) - 8);
        x[i + KV_BLOCK / 2] = scale * (float)((block[2 + i] >> 4) - 8);
    }
}

void kv_row_store(enum kv_type type, int d, const float *x, uint8_t *row) {
    if (type == KV_F32) {
        memcpy(row, x, (size_t)d * sizeof *x);
        return;
    }
    if (type == KV_F16) {
        for (int i = 0; i < d; i++) store_f16(row + 2 * i, x[i]);
        return;
    }
    for (int i = 0; i < d; i += KV_BLOCK) {
        float block[KV_BLOCK] = {0};
        memcpy(block, x + i, (size_t)(d - i < KV_BLOCK ? d - i : KV_BLOCK) * sizeof *x);
        if (type == KV_Q8_0) {
            store_q8_0(block, row);
            row += KV_Q8_0_BYTES;
        } else {
            store_q4_0(block, row);
            row += KV_Q4_0_BYTES;
        }
    }
}

void kv_row_load(enum kv_type type, int d, const uint8_t *row, float *out) {
    if (type == KV_F32) {
        memcpy(out, row, (size_t)d * sizeof *out);
        return;
    }
    if (type == KV_F16) {
        for (int i = 0; i < d; i++) out[i] = load_f16(row + 2 * i);
        return;
    }
    for (int i = 0; i < d; i += KV_BLOCK) {
        float block[KV_BLOCK];
        if (type == KV_Q8_0) {
            load_q8_0(row, block);
            row += KV_Q8_0_BYTES;
        } else {
            load_q4_0(row, block);
            row += KV_Q4_0_BYTES;
        }
        memcpy(out + i, block, (size_t)(d - i < KV_BLOCK ? d - i : KV_BLOCK) * sizeof *out);
    }
}
