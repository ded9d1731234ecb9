/* Vector kernels of every instruction set against double precision, on every
 * length around the vector sizes, and RoPE. */
#include <stdlib.h>
#include <string.h>

#include "../../kernels/kernels.h"
#include "check.h"

static const char *const isas[] = {"c", "avx2", "avx512", "avx512vnni", "amx", "neon", "neondot"};

#define MAX_N 300

static float wave(int i, double size) { return (float)(size * sin(0.7 * i + 0.1 * i * i)); }

static void check_vectors(const struct kernels *k, int n) {
    float x[MAX_N + 1], weight[MAX_N + 1], out[MAX_N + 1];
    double squares = 0;
    for (int i = 0; i <= n; i++) {
        x[i] = wave(i, 3);
        weight[i] = wave(i + 5, 1);
        out[i] = 7;
    }
    for (int i = 0; i < n; i++) squares += (double)x[i] * (double)x[i];
    double rms = sqrt(squares / n + 1e-5);

    rmsnorm(k, out, x, weight, n, 1e-5f);
    for (int i = 0; i < n; i++) CHECK_NEAR(out[i], x[i] / rms * weight[i], 2e-6);
    CHECK(out[n] == 7);
    memcpy(out, x, sizeof x);
    rmsnorm(k, out, out, weight, n, 1e-5f);
    for (int i = 0; i < n; i++) CHECK_NEAR(out[i], x[i] / rms * weight[i], 2e-6);

    memcpy(out, x, sizeof x);
    vec_add(k, out, weight, n);
    for (int i = 0; i < n; i++) CHECK(out[i] == x[i] + weight[i]);
    CHECK(out[n] == x[n]);

    silu_mul(k, out, x, weight, n);
    for (int i = 0; i < n; i++) {
        double expected = x[i] / (1 + exp(-(double)x[i])) * weight[i];
        CHECK_NEAR(out[i], expected, 5e-7 * fabs(expected) + 1e-30);
    }
    CHECK(out[n] == x[n]);
}

/* From where e^-x overflows to where it vanishes. */
static void check_silu_range(const struct kernels *k) {
    for (int i = -130000; i <= 130000; i += 16) {
        float gate[16], up[16];
        for (int j = 0; j < 16; j++) {
            gate[j] = (float)(i + j) / 1000;
            up[j] = 1;
        }
        silu_mul(k, gate, gate, up, 16);
        for (int j = 0; j < 16; j++) {
            double x = (float)(i + j) / 1000.0f, expected = x / (1 + exp(-x));
            CHECK_NEAR(gate[j], expected, 5e-7 * fabs(expected) + 1e-35);
        }
    }
    float extreme[4] = {INFINITY, 1e30f, -1e30f, NAN}, one[4] = {1, 1, 1, 1};
    silu_mul(k, extreme, extreme, one, 4);
    CHECK(extreme[0] == INFINITY && extreme[1] == 1e30f && extreme[2] == 0 && isnan(extreme[3]));
}

static void check_rope(bool interleaved) {
    struct rope rope = {.n_pairs = 4, .interleaved = interleaved, .magnitude = 1.25f};
    for (int i = 0; i < 4; i++) rope.inv_freq[i] = (float)pow(10000, -i / 4.0);
    float table[8], head[10];
    for (int i = 0; i < 10; i++) head[i] = wave(i, 1);
    rope_table(&rope, 100003, table);
    rope_rotate(&rope, table, head);
    for (int i = 0; i < 4; i++) {
        double angle = 100003.0 * (double)rope.inv_freq[i];
        int a = interleaved ? 2 * i : i, b = interleaved ? 2 * i + 1 : i + 4;
        double x = wave(a, 1), y = wave(b, 1);
        CHECK_NEAR(head[a], 1.25 * (x * cos(angle) - y * sin(angle)), 1e-6);
        CHECK_NEAR(head[b], 1.25 * (x * sin(angle) + y * cos(angle)), 1e-6);
    }
    CHECK(head[8] == wave(8, 1) && head[9] == wave(9, 1));
}

int main(void) {
    for (size_t i = 0; i < sizeof isas / sizeof *isas; i++) {
        struct error err;
        const struct kernels *k = kernels_select(isas[i], &err);
        if (!k) continue;
        for (int n = 1; n <= MAX_N; n += n < 70 ? 1 : 23) check_vectors(k, n);
        check_silu_range(k);
    }
    check_rope(true);
    check_rope(false);
    return check_done("vector");
}
