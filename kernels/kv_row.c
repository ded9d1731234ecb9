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

/* A block's codes; returns its scale. */
static float store_q8_0(const float *x, uint8_t *codes) {
    float amax = 0;
    for (int i = 0; i < KV_BLOCK; i++) amax = fmaxf(amax, fabsf(x[i]));
    float scale = amax / 127, inverse = scale > 0 ? 1 / scale : 0;
    for (int i = 0; i < KV_BLOCK; i++) codes[i] = (uint8_t)(int8_t)lrintf(x[i] * inverse);
    return scale;
}

static void load_q8_0(const uint8_t *codes, float scale, float *x) {
    for (int i = 0; i < KV_BLOCK; i++) x[i] = scale * (float)(int8_t)codes[i];
}

/* The value of largest magnitude becomes -8, so that all 16 codes are used. */
static float store_q4_0(const float *x, uint8_t *codes) {
    float extreme = 0;
    for (int i = 0; i < KV_BLOCK; i++)
        if (fabsf(x[i]) > fabsf(extreme)) extreme = x[i];
    float scale = extreme / -8, inverse = scale != 0 ? 1 / scale : 0;
    for (int i = 0; i < KV_BLOCK / 2; i++) {
        int low = (int)(x[i] * inverse + 8.5f), high = (int)(x[i + KV_BLOCK / 2] * inverse + 8.5f);
        codes[i] = (uint8_t)((low > 15 ? 15 : low) | (high > 15 ? 15 : high) << 4);
    }
    return scale;
}

static void load_q4_0(const uint8_t *codes, float scale, float *x) {
    for (int i = 0; i < KV_BLOCK / 2; i++) {
        x[i] = scale * (float)((codes[i] & 15) - 8);
        x[i + KV_BLOCK / 2] = scale * (float)((codes[i] >> 4) - 8);
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
    for (int b = 0; b * KV_BLOCK < d; b++) {
        float block[KV_BLOCK] = {0};
        uint8_t *codes = row + (size_t)b * kv_code_bytes(type);
        int left = d - b * KV_BLOCK;
        memcpy(block, x + b * KV_BLOCK, (size_t)(left < KV_BLOCK ? left : KV_BLOCK) * sizeof *x);
        float scale = type == KV_Q8_0 ? store_q8_0(block, codes) : store_q4_0(block, codes);
        store_f16(row + kv_scale_at(type, d, b), scale);
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
    for (int b = 0; b * KV_BLOCK < d; b++) {
        float block[KV_BLOCK], scale = load_f16(row + kv_scale_at(type, d, b));
        const uint8_t *codes = row + (size_t)b * kv_code_bytes(type);
        if (type == KV_Q8_0) load_q8_0(codes, scale, block);
        else load_q4_0(codes, scale, block);
        int left = d - b * KV_BLOCK;
        memcpy(out + b * KV_BLOCK, block, (size_t)(left < KV_BLOCK ? left : KV_BLOCK) * sizeof *out);
    }
}
