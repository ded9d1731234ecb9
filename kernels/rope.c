/* rope.c - rotary position embedding (Su et al. 2021). */
#include <math.h>

#include "kernels.h"

void rope_table(const struct rope *rope, int64_t pos, float *table) {
    for (int i = 0; i < rope->n_pairs; i++) {
        double angle = (double)pos * (double)rope->inv_freq[i];
        table[2 * i] = (float)(cos(angle) * (double)rope->magnitude);
        table[2 * i + 1] = (float)(sin(angle) * (double)rope->magnitude);
    }
}

static void rotate(float *a, float *b, float cos, float sin) {
    float x = *a, y = *b;
    *a = x * cos - y * sin;
    *b = x * sin + y * cos;
}

void rope_rotate(const struct rope *rope, const float *table, float *head) {
    int n = rope->n_pairs;
    if (rope->interleaved) {
        for (int i = 0; i < n; i++) rotate(&head[2 * i], &head[2 * i + 1], table[2 * i], table[2 * i + 1]);
    } else {
        for (int i = 0; i < n; i++) rotate(&head[i], &head[i + n], table[2 * i], table[2 * i + 1]);
    }
}
