/* sparse_simd.h - sparse.h for any vector width, as static functions; the plain
 * C twin is in sparse.c. The file that includes it defines the vectors:
 *
 *     LANES, vec, ivec                4, 8 or 16 floats; as many int32
 *     v_zero v_set v_load v_store v_add v_sub v_mul v_max v_abs v_sum v_max_lane
 *     v_fma(a, b, c)                  a * b + c
 *     v_reached(x, least)             one bit for each lane that is >= least
 *     v_store_i8(to, x)               rounded to bytes
 *     i_zero i_load i_and i_add
 *     i_bytes(x) i_four(x)            a byte, four bytes, for all lanes
 *     i_shift(x, n)                   16-bit halves to the right
 *     i_dot4(sum, u, s)               sum of products of four unsigned and signed bytes
 *     i_float(x)                      int32 to float */
#pragma once

#include "inline.h"
#include "sparse_internal.h"

#define MAX_ROWS 4 /* queries that share one reading of a group */

/* A query as 8-bit weights of the codes, four channels in each number. */
struct weights {
    int32_t low[KV_MAX_DIM / 4], high[KV_MAX_DIM / 4];
    float offset, scale;
};

static inline void page_weights(const struct page_group *g, const float *q, struct weights *w) {
    vec most = v_zero(), offset = v_zero();
    for (int c = 0; c < g->width; c += LANES) {
        vec x = v_load(q + c);
        most = v_max(most, v_abs(v_mul(x, v_load(g->step + c))));
        offset = v_fma(x, v_load(g->base + c), offset);
    }
    float top = v_max_lane(most) * (0.5f + 0.5f * PAGE_REACH);
    vec half = v_set(top > 0 ? 127 / top * 0.5f : 0), spread = v_set(PAGE_REACH);
    w->offset = v_sum(offset);
    w->scale = top / 127;
    for (int c = 0; c < g->width; c += LANES) {
        vec middle = v_mul(v_mul(v_load(q + c), v_load(g->step + c)), half), reach = v_mul(v_abs(middle), spread);
        v_store_i8(w->low + c / 4, v_sub(middle, reach));
        v_store_i8(w->high + c / 4, v_add(middle, reach));
    }
}

/* All pages of a group for R queries. */
static inline __attribute__((always_inline)) void
reach_rows(const struct page_group *g, const struct weights *w, int R, float *reach, size_t stride) {
    const ivec mask = i_bytes(PAGE_CODES);
    size_t group_bytes = (size_t)g->width * (PAGE_GROUP / 2 + 2 * sizeof(float));
    /* The next group, which is likely to follow, is asked for while this one is read. */
    for (int c = 0; c < 2 * g->width; c += 16) __builtin_prefetch((const char *)(g->base + c) + group_bytes);
    for (int p = 0; p < PAGE_GROUP; p += LANES) {
        const uint8_t *codes = g->codes + p / PAGE_LANES * g->width * (PAGE_LANES / 2) + p % PAGE_LANES * 4;
        ivec sum[MAX_ROWS][2];
        UNROLL for (int r = 0; r < R; r++) sum[r][0] = sum[r][1] = i_zero();
        for (int quad = 0; quad < g->width / 4; quad += 2, codes += 4 * PAGE_LANES) {
            ivec all = i_load(codes);
            __builtin_prefetch(codes + group_bytes);
            UNROLL for (int j = 0; j < 2; j++) {
                ivec low = i_and(j ? i_shift(all, 4) : all, mask);
                ivec high = i_and(j ? i_shift(all, 6) : i_shift(all, 2), mask);
                UNROLL for (int r = 0; r < R; r++) {
                    sum[r][0] = i_dot4(sum[r][0], low, i_four(w[r].low[quad + j]));
                    sum[r][1] = i_dot4(sum[r][1], high, i_four(w[r].high[quad + j]));
                }
            }
        }
        UNROLL for (int r = 0; r < R; r++) {
            vec x = i_float(i_add(sum[r][0], sum[r][1]));
            v_store(reach + (size_t)r * stride + p, v_fma(v_set(w[r].scale), x, v_set(w[r].offset)));
        }
    }
}

static void reach_simd(int d, const void *group, const float *q, size_t q_stride, int m, float *reach,
                       size_t stride) {
    struct page_group g = page_group(d, group);
    _Alignas(64) float padded[KV_MAX_DIM];
    if (d < g.width) memset(padded, 0, sizeof padded);
    for (int r = 0; r < m; r += MAX_ROWS) {
        struct weights w[MAX_ROWS];
        int R = m - r < MAX_ROWS ? m - r : MAX_ROWS;
        float *out = reach + (size_t)r * stride;
        for (int j = 0; j < R; j++) {
            const float *query = q + (size_t)(r + j) * q_stride;
            if (d < g.width) query = memcpy(padded, query, (size_t)d * sizeof *query);
            page_weights(&g, query, &w[j]);
        }
        switch (R) {
        case 1: reach_rows(&g, w, 1, out, stride); break;
        case 2: reach_rows(&g, w, 2, out, stride); break;
        case 3: reach_rows(&g, w, 3, out, stride); break;
        default: reach_rows(&g, w, 4, out, stride); break;
        }
    }
}

static int count_simd(const float *x, int n, float least) {
    int count = 0, i = 0;
    for (; i + LANES <= n; i += LANES) count += __builtin_popcount(v_reached(v_load(x + i), v_set(least)));
    for (; i < n; i++) count += x[i] >= least;
    return count;
}

static int at_least_simd(const float *x, int n, float least, int *index) {
    int count = 0, i = 0;
    for (; i + LANES <= n; i += LANES)
        for (unsigned found = v_reached(v_load(x + i), v_set(least)); found; found &= found - 1)
            index[count++] = i + __builtin_ctz(found);
    for (; i < n; i++)
        if (x[i] >= least) index[count++] = i;
    return count;
}

#define SPARSE_KERNELS(name)                                                                       \
    {.isa = name, .reach = reach_simd, .count = count_simd, .at_least = at_least_simd}
