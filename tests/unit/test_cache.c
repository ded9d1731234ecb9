/* The KV store: conversions against plain formulas, growth, dropping entries. */
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "../../cache/cache.h"
#include "check.h"

static uint64_t seed = 7;

static float uniform(void) { /* in [-1, 1) */
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (float)(int32_t)(seed >> 32) / 2147483648.0f;
}

/* ---- conversions ---------------------------------------------------------------- */

static void check_f16(const float *x, const float *y, int d) {
    for (int c = 0; c < d; c++) CHECK_NEAR(y[c], x[c], fabsf(x[c]) / 2048 + 3e-8);
}

/* Every value is the nearest multiple of the block's scale, which is the largest magnitude / 127. */
static void check_q8_0(const float *x, const float *y, int d) {
    for (int b = 0; b < d; b += 32) {
        float most = 0;
        for (int c = b; c < b + 32 && c < d; c++) most = fmaxf(most, fabsf(x[c]));
        for (int c = b; c < b + 32 && c < d; c++) CHECK_NEAR(y[c], x[c], most / 127 * 0.5 + most / 1000);
    }
}

/* Codes 0..15 stand for -8..7 times a scale that makes the largest magnitude -8 or 8 less one step. */
static void check_q4_0(const float *x, const float *y, int d) {
    for (int b = 0; b < d; b += 32) {
        float most = 0;
        for (int c = b; c < b + 32 && c < d; c++)
            if (fabsf(x[c]) > fabsf(most)) most = x[c];
        float step = fabsf(most) / 8;
        for (int c = b; c < b + 32 && c < d; c++) {
            bool clipped = x[c] * most < 0 && fabsf(x[c]) > 7.5f * step;
            CHECK_NEAR(y[c], x[c], clipped ? step + step / 100 : step * 0.51 + step / 100);
        }
    }
}

static void test_rows(void) {
    static const int dims[] = {1, 8, 31, 32, 33, 64, 80, 96, 100, 128, 256};
    for (size_t i = 0; i < sizeof dims / sizeof *dims; i++) {
        for (int round = 0; round < 5; round++) {
            int d = dims[i];
            float x[KV_MAX_DIM], y[KV_MAX_DIM], scale = powf(8, (float)round - 2);
            uint8_t row[KV_MAX_DIM * 4];
            for (int c = 0; c < d; c++) x[c] = scale * uniform();
            kv_row_store(KV_F32, d, x, row);
            kv_row_load(KV_F32, d, row, y);
            CHECK(!memcmp(x, y, sizeof *x * (size_t)d));
            kv_row_store(KV_F16, d, x, row);
            kv_row_load(KV_F16, d, row, y);
            check_f16(x, y, d);
            kv_row_store(KV_Q8_0, d, x, row);
            kv_row_load(KV_Q8_0, d, row, y);
            check_q8_0(x, y, d);
            kv_row_store(KV_Q4_0, d, x, row);
            kv_row_load(KV_Q4_0, d, row, y);
            check_q4_0(x, y, d);
        }
    }
    CHECK(kv_row_bytes(KV_F32, 80) == 320 && kv_row_bytes(KV_F16, 80) == 160);
    CHECK(kv_row_bytes(KV_Q8_0, 80) == 3 * 34 && kv_row_bytes(KV_Q4_0, 80) == 3 * 18);
}

/* Codes are GGML's, halves of the bytes of q4_0 16 apart; the scales of all blocks follow those of the last. */
static void test_layout(void) {
    float x[64] = {0};
    uint8_t row[68];
    x[0] = -127;
    x[31] = 64;
    x[63] = 254;
    kv_row_store(KV_Q8_0, 64, x, row);
    CHECK((int8_t)row[0] == -127 && (int8_t)row[31] == 64 && row[63] == 127);
    CHECK(row[64] == 0x00 && row[65] == 0x3c && row[66] == 0x00 && row[67] == 0x40); /* 1 and 2 in f16 */
    x[0] = -8;
    x[31] = 7;
    x[63] = -16;
    kv_row_store(KV_Q4_0, 64, x, row);
    CHECK(row[0] == (0 | 8 << 4) && row[15] == (8 | 15 << 4) && row[31] == (8 | 0 << 4));
    CHECK(row[32] == 0x00 && row[33] == 0x3c && row[34] == 0x00 && row[35] == 0x40);
}

static void test_zero_rows(void) {
    float x[64] = {0}, y[64];
    uint8_t row[256];
    for (enum kv_type t = KV_F32; t <= KV_Q4_0; t++) {
        kv_row_store(t, 64, x, row);
        kv_row_load(t, 64, row, y);
        for (int c = 0; c < 64; c++) CHECK_NEAR(y[c], 0, 0);
    }
}

/* ---- the store --------------------------------------------------------------------- */

/* Keys and values that tell their head and position. */
static void append(struct kv_cache *c, int head, int pos) {
    float k[4], v[4];
    for (int i = 0; i < 4; i++) {
        k[i] = (float)(pos % 1000 + head);
        v[i] = -k[i];
    }
    kv_append(c, head, pos, k, v);
}

static bool holds(const struct kv_cache *c, int head, int i, int pos) {
    float k[4], v[4];
    kv_key(c, head, i, k);
    kv_value(c, head, i, v);
    float expected = (float)(pos % 1000 + head);
    return c->heads[head].pos[i] == pos && k[0] == expected && k[3] == expected && v[0] == -expected;
}

static void test_growth(void) {
    struct kv_cache c;
    CHECK(!kv_init(&c, 2, 4, KV_F32, KV_F16, NULL));
    CHECK(kv_bytes(&c) == 0);
    int grown = 0;
    for (int pos = 0; pos < 5000; pos++) {
        size_t before = kv_bytes(&c);
        CHECK(!kv_reserve(&c, 1, NULL));
        grown += kv_bytes(&c) > before;
        append(&c, 0, pos);
        append(&c, 1, pos);
    }
    for (int pos = 0; pos < 5000; pos += 37) CHECK(holds(&c, 0, pos, pos) && holds(&c, 1, pos, pos));
    CHECK(grown < 30); /* geometric */
    CHECK(kv_bytes(&c) < 5000 * 2 * (4 + 16 + 8) * 3 / 2);
    CHECK(kv_reserve(&c, INT_MAX, NULL) == -1);
    CHECK(holds(&c, 0, 4999, 4999)); /* a failure leaves what is there */
    kv_free(&c);
}

/* Room for what is expected is made at once, and no more; then growth is as ever. */
static void test_expected(void) {
    struct kv_cache c;
    CHECK(!kv_init(&c, 2, 4, KV_F32, KV_F16, NULL));
    c.expected = 640;
    CHECK(!kv_reserve(&c, 100, NULL));
    const uint8_t *k = c.heads[0].k;
    for (int pos = 0; pos < 640; pos++) {
        CHECK(!kv_reserve(&c, 1, NULL));
        append(&c, 0, pos);
        append(&c, 1, pos);
    }
    CHECK(c.heads[0].k == k && c.heads[1].cap == 640);
    CHECK(!kv_reserve(&c, 1, NULL));
    CHECK(c.heads[0].cap == 832); /* a quarter more, in whole steps */
    for (int pos = 0; pos < 640; pos += 37) CHECK(holds(&c, 0, pos, pos) && holds(&c, 1, pos, pos));
    kv_free(&c);
}

static void test_keep(void) {
    struct kv_cache c;
    enum { N = 20000, KEPT = N / 40 };
    static int keep[KEPT];
    CHECK(!kv_init(&c, 2, 4, KV_F32, KV_F32, NULL));
    CHECK(!kv_reserve(&c, N, NULL));
    for (int pos = 0; pos < N; pos++) {
        append(&c, 0, pos);
        append(&c, 1, pos);
    }
    for (int i = 0; i < KEPT; i++) keep[i] = 40 * i + 3;
    size_t before = kv_bytes(&c);
    kv_keep(&c, 1, keep, KEPT);
    CHECK(c.heads[0].n == N && c.heads[1].n == KEPT);
    for (int i = 0; i < KEPT; i++) CHECK(holds(&c, 1, i, keep[i]));
    kv_trim(&c);
    CHECK(kv_bytes(&c) < before * 6 / 10); /* gives memory back */
    for (int i = 0; i < KEPT; i++) CHECK(holds(&c, 0, 40 * i, 40 * i) && holds(&c, 1, i, keep[i]));
    CHECK(!kv_reserve(&c, 10, NULL));
    append(&c, 1, N);
    CHECK(holds(&c, 1, KEPT, N));

    kv_truncate(&c, 10000);
    CHECK(c.heads[0].n == 10000 && c.heads[1].n == 250);
    CHECK(holds(&c, 1, 249, keep[249]));
    kv_keep(&c, 0, keep, 0);
    CHECK(c.heads[0].n == 0);
    kv_truncate(&c, 0);
    CHECK(c.heads[1].n == 0);
    kv_free(&c);
}

static void test_write_advance(void) {
    struct kv_cache c;
    float k[4] = {1, 1, 1, 1}, v[4] = {-1, -1, -1, -1};
    CHECK(!kv_init(&c, 1, 4, KV_F32, KV_F32, NULL));
    CHECK(!kv_reserve(&c, 2, NULL));
    kv_write(&c, 0, 1, 1, k, v);
    CHECK(c.heads[0].n == 0);
    kv_write(&c, 0, 0, 1001, k, v);
    kv_advance(&c, 2);
    CHECK(c.heads[0].n == 2 && holds(&c, 0, 0, 1001) && holds(&c, 0, 1, 1));
    kv_free(&c);
}

static void test_types(void) {
    enum kv_type k, v;
    struct error err;
    CHECK(!kv_types_parse("f16", &k, &v, &err) && k == KV_F16 && v == KV_F16);
    CHECK(!kv_types_parse("q8_0,f32", &k, &v, &err) && k == KV_Q8_0 && v == KV_F32);
    CHECK(!kv_types_parse("q4_0,q4_0", &k, &v, &err) && k == KV_Q4_0 && v == KV_Q4_0);
    static const char *const wrong[] = {"", ",", "f16,", ",f16", "f16,f16,f16", "F16", "q8", "f16 "};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        err.text[0] = 0;
        CHECK(kv_types_parse(wrong[i], &k, &v, &err) == -1 && strstr(err.text, "--kv-type"));
    }
    CHECK(k == KV_Q4_0 && v == KV_Q4_0); /* untouched by failures */
    struct kv_cache c;
    CHECK(kv_init(&c, 1, KV_MAX_DIM + 1, KV_F16, KV_F16, &err) == -1);
    kv_free(&c);
}

int main(void) {
    test_rows();
    test_layout();
    test_zero_rows();
    test_growth();
    test_expected();
    test_keep();
    test_write_advance();
    test_types();
    return check_done("test_cache");
}
