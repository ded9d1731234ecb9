#include "sparse_internal.h"

size_t page_group_bytes(int d) { return (size_t)page_width(d) * (PAGE_GROUP + 2 * sizeof(float)); }

/* ---- building ---------------------------------------------------------------- */

/* Smallest and largest value of each channel in every page, [PAGE_GROUP][width]. */
static void page_ranges(const struct attend_kernels *a, const struct kv_view *kv, int begin, int width, float *low,
                        float *high) {
    _Alignas(64) float key[KV_MAX_DIM];
    for (int i = 0; i < PAGE * PAGE_GROUP; i++) {
        float *least = low + i / PAGE * width, *most = high + i / PAGE * width;
        a->load(kv->type_k, kv->d, kv->k + (size_t)(begin + i) * kv->k_row_bytes, key);
        for (int c = 0; c < kv->d; c++) {
            bool first = i % PAGE == 0;
            least[c] = first || key[c] < least[c] ? key[c] : least[c];
            most[c] = first || key[c] > most[c] ? key[c] : most[c];
        }
    }
}

static int page_code(float x, float base, float inverse) {
    float code = (x - base) * inverse + 0.5f;
    return code >= PAGE_CODES ? PAGE_CODES : code > 0 ? (int)code : 0; /* a NaN is 0 */
}

void page_group_build(const struct attend_kernels *a, const struct kv_view *kv, int begin, void *group) {
    float low[PAGE_GROUP * KV_MAX_DIM], high[PAGE_GROUP * KV_MAX_DIM];
    int width = page_width(kv->d);
    uint8_t *codes = group;
    float *base = (float *)(void *)(codes + (size_t)width * PAGE_GROUP), *step = base + width;
    page_ranges(a, kv, begin, width, low, high);
    memset(group, 0, page_group_bytes(kv->d));
    for (int c = 0; c < kv->d; c++) {
        float least = low[c], most = high[c];
        for (int p = 1; p < PAGE_GROUP; p++) {
            least = fminf(least, low[p * width + c]);
            most = fmaxf(most, high[p * width + c]);
        }
        base[c] = least;
        step[c] = (most - least) / PAGE_CODES;
        float inverse = step[c] > 0 ? 1 / step[c] : 0;
        for (int p = 0; p < PAGE_GROUP; p++) {
            size_t quad = (size_t)(p / PAGE_LANES * (width / 4) + c / 4);
            codes[(quad * PAGE_LANES + (size_t)(p % PAGE_LANES)) * 4 + (size_t)(c % 4)] =
                (uint8_t)(page_code(low[p * width + c], least, inverse) |
                          page_code(high[p * width + c], least, inverse) << 4);
        }
    }
}

/* ---- the k best -------------------------------------------------------------- */

#define SAMPLE 512

/* The k-th largest of x [n], 1 <= k <= n, without NaNs; reorders x. Hoare's quickselect. */
static float kth_largest(float *x, int n, int k) {
    int first = 0, last = n - 1, target = k - 1;
    while (first < last) {
        float pivot = x[first + (last - first) / 2];
        int i = first, j = last;
        while (i <= j) {
            while (x[i] > pivot) i++;
            while (x[j] < pivot) j--;
            if (i > j) break;
            float swap = x[i];
            x[i++] = x[j];
            x[j--] = swap;
        }
        if (target <= j) last = j;
        else if (target >= i) first = i;
        else break;
    }
    return x[target];
}

/* A value that probably somewhat more than k of x [n] reach, from a sample. */
static float guess_least(const float *x, int n, int k, float *spare) {
    int count = 0;
    for (int i = 0; i < SAMPLE; i++) {
        float value = x[(size_t)i * (size_t)n / SAMPLE];
        if (value >= -INFINITY) spare[count++] = value;
    }
    float expected = (float)k * (float)count / (float)n;
    int rank = (int)(expected + 2.5f * sqrtf(expected)) + 3;
    return rank < count ? kth_largest(spare, count, rank) : -INFINITY;
}

int select_best(const struct sparse_kernels *s, const float *x, int n, int k, int *best, float *spare) {
    if (k <= 0 || n <= 0) return 0;
    int count = n > 2 * SAMPLE ? s->at_least(x, n, guess_least(x, n, k, spare), best) : 0;
    if (count < k) count = s->at_least(x, n, -INFINITY, best);
    if (count <= k) return count;

    for (int i = 0; i < count; i++) spare[i] = x[best[i]];
    float least = kth_largest(spare, count, k);
    int equal = k, kept = 0; /* of those equal to the least, the first so many */
    for (int i = 0; i < count; i++) equal -= spare[i] > least;
    for (int i = 0; i < count; i++) {
        float value = x[best[i]];
        if (value > least || (value == least && equal-- > 0)) best[kept++] = best[i];
    }
    return kept;
}

/* ---- plain C ------------------------------------------------------------------- */

/* A query as 8-bit weights of the codes: reach = offset + scale * sum of weights * codes. */
struct weights {
    int8_t low[KV_MAX_DIM], high[KV_MAX_DIM];
    float offset, scale;
};

static void page_weights(int d, const struct page_group *g, const float *q, struct weights *w) {
    float low[KV_MAX_DIM], high[KV_MAX_DIM], most = 0;
    w->offset = 0;
    for (int c = 0; c < d; c++) {
        low[c] = (q[c] - PAGE_REACH * fabsf(q[c])) * 0.5f * g->step[c];
        high[c] = (q[c] + PAGE_REACH * fabsf(q[c])) * 0.5f * g->step[c];
        most = fmaxf(most, fmaxf(fabsf(low[c]), fabsf(high[c])));
        w->offset += q[c] * g->base[c];
    }
    float inverse = most > 0 ? 127 / most : 0;
    w->scale = most / 127;
    for (int c = 0; c < d; c++) {
        w->low[c] = (int8_t)lrintf(low[c] * inverse);
        w->high[c] = (int8_t)lrintf(high[c] * inverse);
    }
}

static void reach_c(int d, const void *group, const float *q, size_t q_stride, int m, float *reach, size_t stride) {
    struct page_group g = page_group(d, group);
    for (int r = 0; r < m; r++) {
        struct weights w;
        page_weights(d, &g, q + (size_t)r * q_stride, &w);
        for (int p = 0; p < PAGE_GROUP; p++) {
            const uint8_t *codes = g.codes + (p / PAGE_LANES * g.width * PAGE_LANES + p % PAGE_LANES * 4);
            int32_t sum = 0;
            for (int c = 0; c < d; c++) {
                int code = codes[c / 4 * PAGE_LANES * 4 + c % 4];
                sum += w.low[c] * (code & 15) + w.high[c] * (code >> 4);
            }
            reach[(size_t)r * stride + (size_t)p] = w.offset + w.scale * (float)sum;
        }
    }
}

static int at_least_c(const float *x, int n, float least, int *index) {
    int count = 0;
    for (int i = 0; i < n; i++) {
        index[count] = i;
        count += x[i] >= least;
    }
    return count;
}

const struct sparse_kernels sparse_c = {.isa = "c", .reach = reach_c, .at_least = at_least_c};

static const struct {
    const char *isa;
    const struct sparse_kernels *kernels;
} choices[] = {
#if defined(__x86_64__) || defined(__i386__)
    {"avx512", &sparse_avx512},
    {"avx512vnni", &sparse_avx512vnni},
    {"amx", &sparse_avx512vnni},
#endif
};

const struct sparse_kernels *sparse_select(const char *isa) {
    for (size_t i = 0; i < sizeof choices / sizeof *choices; i++)
        if (!strcmp(choices[i].isa, isa)) return choices[i].kernels;
    return &sparse_c;
}
