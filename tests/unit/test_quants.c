/* Every weight type against the gguf package's dequantize(), and the half
 * precision conversions against each other. tests/golden/make_quants.py. */
#include <stdlib.h>
#include <string.h>

#include "../../kernels/kernels.h"
#include "check.h"

static void check_golden(void) {
    FILE *f = fopen("tests/golden/quants.bin", "rb");
    CHECK(f != NULL);
    if (!f) return;
    const struct kernels *k = kernels_select("c", NULL);
    uint32_t head[3]; /* type, elements, bytes */
    int types = 0;
    while (fread(head, sizeof head, 1, f) == 1) {
        uint8_t *data = malloc(head[2]);
        float *expected = malloc(head[1] * sizeof *expected), *got = malloc(head[1] * sizeof *got);
        CHECK(data && expected && got);
        CHECK(fread(data, 1, head[2], f) == head[2]);
        CHECK(fread(expected, sizeof *expected, head[1], f) == head[1]);
        struct weight w = {
            .type = head[0], .rows = 1, .cols = (int)head[1], .row_bytes = head[2], .data = data};
        weight_row(k, &w, 0, got);
        int different = 0;
        for (uint32_t i = 0; i < head[1]; i++) different += got[i] != expected[i];
        if (different) printf("%s: %d of %u differ\n", tensor_type_name(head[0]), different, head[1]);
        CHECK(different == 0);
        types++;
        free(data);
        free(expected);
        free(got);
    }
    CHECK(types == 11);
    fclose(f);
}

static void check_halves(void) {
    for (uint32_t h = 0; h < 0x10000; h++) {
        float f = f16_to_f32((uint16_t)h);
        if (isnan(f)) CHECK(isnan(f16_to_f32(f32_to_f16(f))));
        else CHECK(f32_to_f16(f) == h);
    }
    CHECK(f16_to_f32(0x3c00) == 1.0f && f16_to_f32(1) == 0x1p-24f && f16_to_f32(0xfbff) == -65504.0f);
    CHECK(f32_to_f16(65519.0f) == 0x7bff && f32_to_f16(65520.0f) == 0x7c00);
    CHECK(f32_to_f16(0x1p-25f) == 0 && f32_to_f16(0x1.8p-25f) == 1); /* ties to even */
    CHECK(f32_to_f16(1 + 0x1p-11f) == 0x3c00 && f32_to_f16(1 + 0x3p-11f) == 0x3c02);
    CHECK(f32_to_f16(-1e-30f) == 0x8000);
}

int main(void) {
    check_golden();
    check_halves();
    return check_done("quants");
}
