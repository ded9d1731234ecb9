#include "sparse.h"

#include <math.h>

double mass_kept(const struct attn_layer *layer, int g, const float *q, int limit, const float *state,
                 float *scores) {
    struct kv_view kv = kv_view(&layer->cache, g);
    float most = -INFINITY;
    double all = 0;
    layer->shape->attend->scores(&kv, 0, limit, q, 0, 1, scores, 0);
    for (int i = 0; i < limit; i++) most = fmaxf(most, scores[i]);
    for (int i = 0; i < limit; i++) all += expf(scores[i] - most);
    return all > 0 ? (double)state[ATTEND_SUM] * exp((double)(state[ATTEND_MAX] - most)) / all : 1;
}

void measures_add(const struct measure *measures, int n, struct attn_stats *stats) {
    for (int i = 0; i < n; i++) {
        stats->rows_measured += measures[i].rows;
        stats->recall += measures[i].recall;
        stats->mass += measures[i].mass;
    }
}
