/* quants.c - weight rows as float32, and the 16-bit float formats. */
#include "quants.h"

static void dequantize(const struct quant_format *f, const uint8_t *block, int cols, float *out) {
    uint8_t u[MAX_BLOCK];
    float d[MAX_BLOCK / 16], m[MAX_BLOCK / 16] = {0};
    for (int c = 0; c < cols; c += f->block, block += f->bytes) {
        f->unpack(block, 1, u, d, m, 1);
        for (int i = 0; i < f->block; i++) {
            float w = d[i / f->group] * (float)(u[i] - f->zero);
            out[c + i] = f->has_min ? w + m[i / f->group] : w;
        }
    }
}

bool is_quantised(enum tensor_type type) { return quant_format(type) != NULL; }

void weight_row(const struct kernels *k, const struct weight *w, int64_t row, float *out) {
    (void)k;
    const uint8_t *data = w->data + (size_t)row * w->row_bytes;
    const struct quant_format *f = quant_format(w->type);
    if (f) {
        dequantize(f, data, w->cols, out);
    } else if (w->type == TENSOR_F32) {
        memcpy(out, data, (size_t)w->cols * sizeof *out);
    } else {
        for (int i = 0; i < w->cols; i++) {
            uint16_t h;
            memcpy(&h, data + 2 * i, sizeof h);
            out[i] = w->type == TENSOR_F16 ? f16_to_f32(h) : bf16_to_f32(h);
        }
    }
}

float f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fff, bits;
    if (rest >= 0x7c00) { /* infinity, NaN */
        bits = 0x7f800000 | (rest & 0x3ff) << 13;
    } else if (rest >= 0x400) {
        bits = (rest << 13) + ((127 - 15) << 23);
    } else { /* zero and subnormals: rest * 2^-24 */
        float f = (float)rest * 0x1p-24f;
        memcpy(&bits, &f, sizeof bits);
    }
    bits |= sign;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

uint16_t f32_to_f16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return sign | 0x7e00 | (uint16_t)(bits >> 13 & 0x3ff); /* NaN */
    if (bits >= 0x477ff000) return sign | 0x7c00;                                 /* rounds to infinity */
    if (bits < 0x38800000) { /* below the least normal: the FPU rounds to a multiple of 2^-24 */
        float f;
        memcpy(&f, &bits, sizeof f);
        f += 0.5f;
        memcpy(&bits, &f, sizeof bits);
        return sign | (uint16_t)(bits - 0x3f000000);
    }
    bits += 0xfff + (bits >> 13 & 1);
    return sign | (uint16_t)((bits - ((127 - 15) << 23)) >> 13);
}

float bf16_to_f32(uint16_t h) {
    uint32_t bits = (uint32_t)h << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}
