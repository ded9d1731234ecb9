/* evict_sim.h - the eviction policies by their definitions, in double precision and no hurry.
 *
 * Follows what an implementation keeps: after each batch it says whether that was a best choice, up to
 * rounding, and goes on from there. */
#pragma once

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define SIM_HEADS 6     /* at most */
#define SIM_DIM 16
#define SIM_TOKENS 240

struct sim {
    char policy[16];
    int H, G, d, layer, n_layer;
    double base;
    int budget, sink, recent, rerotate, window, kernel, beta, lag, cross, future, covariance, renew;
    double safeguard, epsilon;

    const float *q, *k, *v;   /* [T,H,d], [T,G,d], [T,G,d] before RoPE */
    int n_past, prompt_begin, renewed_at, n[SIM_HEADS];
    int pos[SIM_HEADS][SIM_TOKENS];            /* what each head holds */
    double received[SIM_HEADS][SIM_TOKENS];    /* by position: h2o */
    double exponent[SIM_HEADS][SIM_TOKENS];    /* by query head and position: expected */
    double score[SIM_HEADS][SIM_TOKENS];       /* by place */
};

static double sim_max(double a, double b) { return a > b ? a : b; }

static void sim_rotate(const struct sim *s, const float *x, double place, double *out) {
    int half = s->d / 2;
    for (int i = 0; i < half; i++) {
        double angle = place * (double)powf((float)s->base, -2.0f * (float)i / (float)s->d);
        out[i] = x[i] * cos(angle) - x[i + half] * sin(angle);
        out[i + half] = x[i] * sin(angle) + x[i + half] * cos(angle);
    }
}

/* Entry i of a head. */
static void sim_key(const struct sim *s, int g, int i, double *out) {
    sim_rotate(s, s->k + (s->pos[g][i] * s->G + g) * s->d, s->rerotate ? i : s->pos[g][i], out);
}

static double sim_dot(const double *x, const double *y, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += x[i] * y[i];
    return sum;
}

/* Attention probabilities of the newest token but `back`, query head h, over its KV head's entries. */
static void sim_attention(const struct sim *s, int h, int back, double *p) {
    int g = h / (s->H / s->G), t = s->n_past - 1 - back, limit = s->n[g] - back;
    double q[SIM_DIM], key[SIM_DIM], max = -INFINITY, sum = 0;
    sim_rotate(s, s->q + (t * s->H + h) * s->d, s->rerotate ? limit - 1 : t, q);
    for (int i = 0; i < limit; i++) {
        sim_key(s, g, i, key);
        p[i] = sim_dot(q, key, s->d) / sqrt(s->d);
        max = sim_max(max, p[i]);
    }
    for (int i = 0; i < limit; i++) sum += p[i] = exp(p[i] - max);
    for (int i = 0; i < s->n[g]; i++) p[i] = i < limit ? p[i] / sum : 0;
}

static void sim_keydiff(struct sim *s, int g, int n) {
    double anchor[SIM_DIM] = {0}, key[SIM_DIM];
    for (int i = 0; i < n; i++) {
        sim_key(s, g, i, key);
        double norm = sqrt(sim_dot(key, key, s->d));
        for (int c = 0; c < s->d; c++) anchor[c] += key[c] / norm / n;
    }
    for (int i = 0; i < n; i++) {
        sim_key(s, g, i, key);
        double norms = sqrt(sim_dot(key, key, s->d) * sim_dot(anchor, anchor, s->d));
        s->score[g][i] = -sim_dot(key, anchor, s->d) / norms;
    }
}

static void sim_knorm(struct sim *s, int g) {
    double key[SIM_DIM];
    for (int i = 0; i < s->n[g]; i++) {
        sim_key(s, g, i, key);
        s->score[g][i] = -sqrt(sim_dot(key, key, s->d));
    }
}

static void sim_h2o(struct sim *s, int g) {
    for (int i = 0; i < s->n[g]; i++) s->score[g][i] = s->received[g][s->pos[g][i]];
}

static void sim_tova(struct sim *s, int g) {
    double p[SIM_TOKENS];
    for (int i = 0; i < s->n[g]; i++) s->score[g][i] = 0;
    for (int h = 0; h < s->H; h++) {
        sim_attention(s, h, 0, p);
        for (int i = 0; i < s->n[g]; i++) s->score[g][i] += p[i] / s->H;
    }
}

static void sim_snapkv(struct sim *s, int g) {
    int group = s->H / s->G, queries = s->n_past - s->prompt_begin, reach = s->kernel / 2;
    if (queries > s->window) queries = s->window;
    int before = s->n[g] - queries;
    double p[SIM_TOKENS], mean[SIM_TOKENS] = {0};
    for (int h = g * group; h < (g + 1) * group; h++)
        for (int back = 0; back < queries; back++) {
            sim_attention(s, h, back, p);
            for (int i = 0; i < before; i++) mean[i] += p[i] / (group * queries);
        }
    for (int i = 0; i < s->n[g]; i++) {
        s->score[g][i] = i < before ? 0 : 10;
        for (int j = i - reach; i < before && j <= i + reach; j++)
            if (j >= 0 && j < before) s->score[g][i] += mean[j] / s->kernel;
    }
}

/* Channel c of entry i's key (what = 0) or value. */
static double sim_channel(const struct sim *s, int g, int i, int what, int c) {
    double key[SIM_DIM];
    if (what) return s->v[(s->pos[g][i] * s->G + g) * s->d + c];
    sim_key(s, g, i, key);
    return key[c];
}

static double sim_deviation(const struct sim *s, int g, int i, int what, int reference) {
    double x[SIM_DIM], mean = 0, square = 0;
    for (int c = 0; c < s->d; c++) {
        double min = INFINITY, max = -INFINITY;
        for (int j = reference; j < reference + s->lag; j++) {
            min = fmin(min, sim_channel(s, g, j, what, c));
            max = fmax(max, sim_channel(s, g, j, what, c));
        }
        x[c] = (sim_channel(s, g, i, what, c) - min) / (max - min);
        mean += x[c] / s->d;
    }
    for (int c = 0; c < s->d; c++) square += (x[c] - mean) * (x[c] - mean);
    return sqrt(square / (s->d - 1));
}

static void sim_lagkv(struct sim *s, int g) {
    int n = s->n[g], lag = s->lag, sink = 0;
    while (sink < n && s->pos[g][sink] < s->sink) sink++;
    int partitions = (n - sink) / lag;
    for (int i = 0; i < n; i++) s->score[g][i] = partitions < 2 ? (double)i : 1;
    for (int p = 0; p + 1 < partitions; p++) {
        double deviation[2][SIM_TOKENS], sum[2] = {0}, value[SIM_TOKENS];
        int begin = sink + p * lag;
        for (int what = 0; what < 2; what++)
            for (int i = 0; i < lag; i++)
                sum[what] += deviation[what][i] = exp(sim_deviation(s, g, begin + i, what, begin + lag));
        for (int i = 0; i < lag; i++) value[i] = (deviation[0][i] / sum[0] + deviation[1][i] / sum[1]) / 2;
        for (int i = 0; i < lag; i++) {
            int below = 0;
            for (int j = 0; j < lag; j++) below += value[j] < value[i];
            s->score[g][begin + i] = s->cross ? value[i] : (double)below / lag;
        }
    }
}

/* Mean and covariance of the queries before RoPE so far, with RoPE averaged over the positions to come. */
static double sim_exponent(const struct sim *s, int h, const double *key) {
    double mean = 0, square = 0, average[SIM_DIM] = {0}, turned[SIM_DIM];
    int next = s->rerotate ? s->n[h / (s->H / s->G)] : s->n_past, count = s->n_past - s->sink;
    float x[SIM_DIM];
    for (int c = 0; c < s->d; c++) x[c] = (float)key[c];
    for (int p = 0; p < s->future; p++) { /* q.R'k for all R = R(next + p), by turning the key back */
        sim_rotate(s, x, -(double)(next + p), turned);
        for (int c = 0; c < s->d; c++) average[c] += turned[c] / s->future;
    }
    for (int t = s->sink; t < s->n_past; t++) {
        double product = 0;
        for (int c = 0; c < s->d; c++) product += average[c] * s->q[(t * s->H + h) * s->d + c];
        mean += product / count;
        square += product * product / count;
    }
    return mean / sqrt(s->d) + (s->covariance ? (square - mean * mean) / (2 * s->d) : 0);
}

static void sim_expected(struct sim *s, int g, int n_batch, bool renew) {
    int group = s->H / s->G, sink = 0;
    double key[SIM_DIM];
    while (sink < s->n[g] && s->pos[g][sink] < s->sink) sink++;
    for (int i = 0; i < s->n[g]; i++) s->score[g][i] = 0;
    for (int h = g * group; h < (g + 1) * group; h++) {
        double sum = 0;
        for (int i = 0; i < s->n[g]; i++) {
            double *exponent = &s->exponent[h][s->pos[g][i]];
            sim_key(s, g, i, key);
            if (renew || s->pos[g][i] >= s->n_past - n_batch) *exponent = sim_exponent(s, h, key);
            if (i >= sink) sum += exp(*exponent);
        }
        for (int i = sink; i < s->n[g]; i++)
            s->score[g][i] += exp(s->exponent[h][s->pos[g][i]]) / sum / group;
    }
    for (int i = sink; i < s->n[g]; i++) {
        double norm = 0;
        for (int c = 0; c < s->d; c++) norm += pow(s->v[(s->pos[g][i] * s->G + g) * s->d + c], 2);
        s->score[g][i] = (s->score[g][i] + s->epsilon) * sqrt(norm);
    }
}

/* Takes in a batch, whose entries are the newest. */
static void sim_add(struct sim *s, int n) {
    double p[SIM_TOKENS];
    int group = s->H / s->G;
    for (int g = 0; g < s->G; g++)
        for (int i = 0; i < n; i++) s->pos[g][s->n[g]++] = s->n_past + i;
    s->n_past += n;
    for (int h = 0; h < s->H && !strcmp(s->policy, "h2o"); h++)
        for (int back = 0, g = h / group; back < n; back++) {
            sim_attention(s, h, back, p);
            for (int i = 0; i < s->n[g]; i++) s->received[g][s->pos[g][i]] += p[i] / group;
        }
}

/* Scores of the first n entries of a head, after sim_add(). What must stay gets INFINITY. */
static void sim_score(struct sim *s, int g, int n, int n_batch, bool renew) {
    const char *p = s->policy;
    if (!strcmp(p, "window") || !strcmp(p, "streaming"))
        for (int i = 0; i < n; i++) s->score[g][i] = s->pos[g][i];
    else if (!strcmp(p, "keydiff")) sim_keydiff(s, g, n);
    else if (!strcmp(p, "knorm")) sim_knorm(s, g);
    else if (!strcmp(p, "h2o")) sim_h2o(s, g);
    else if (!strcmp(p, "tova")) sim_tova(s, g);
    else if (!strcmp(p, "lagkv")) sim_lagkv(s, g);
    else if (!strcmp(p, "expected")) sim_expected(s, g, n_batch, renew);
    else sim_snapkv(s, g); /* and those that share out its scores */
    for (int i = 0; i < n; i++)
        if (s->pos[g][i] < s->sink || i >= n - s->recent) s->score[g][i] = INFINITY;
}
