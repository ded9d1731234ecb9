#include "sampler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define FEW_BEST 256 /* candidates among which top-p and min-p usually end */

int sampler_init(struct sampler *s, const struct sampler_options *options, int n_vocab, struct error *err) {
    *s = (struct sampler){.options = *options, .rng = options->seed, .n_vocab = n_vocab};
    s->candidates = malloc((size_t)n_vocab * sizeof *s->candidates);
    s->penalised = malloc((size_t)n_vocab * sizeof *s->penalised);
    if (s->candidates && s->penalised) return 0;
    sampler_free(s);
    return fail(err, "out of memory for sampling among %d tokens", n_vocab);
}

void sampler_free(struct sampler *s) {
    free(s->candidates);
    free(s->penalised);
    s->candidates = NULL;
    s->penalised = NULL;
}

void sampler_accept(struct sampler *s, int token) {
    s->recent[s->n_recent++ % SAMPLER_RECENT] = token;
}

/* splitmix64 (Steele et al. 2014): uniform in [0, 1). */
static double random_uniform(struct sampler *s) {
    uint64_t z = s->rng += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (double)((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

/* A copy of the logits in which recent tokens have been penalised: each once, however often it occurred. */
static const float *penalise_repeats(struct sampler *s, const float *logits) {
    int n = s->n_recent < SAMPLER_RECENT ? s->n_recent : SAMPLER_RECENT;
    memcpy(s->penalised, logits, (size_t)s->n_vocab * sizeof *logits);
    for (int i = 0; i < n; i++) {
        const int token = s->recent[i];
        const float logit = logits[token], penalty = s->options.repeat_penalty;
        s->penalised[token] = logit > 0 ? logit / penalty : logit * penalty;
    }
    return s->penalised;
}

/* Best logit first; the lower id wins a tie, so that runs repeat exactly. */
static int compare(const void *a, const void *b) {
    const struct candidate *x = a, *y = b;
    if (x->logit != y->logit) return x->logit < y->logit ? 1 : -1;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* NaN, which damaged weights give and no order holds for, comes last. */
static struct candidate candidate(const float *logits, int id) {
    return (struct candidate){.id = id, .logit = isnan(logits[id]) ? -INFINITY : logits[id]};
}

/* Lets candidate i of a heap of n, whose first is the worst, sink to its place. */
static void sink(struct candidate *c, int n, int i) {
    for (int child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && compare(&c[child + 1], &c[child]) > 0) child++;
        if (compare(&c[i], &c[child]) >= 0) return;
        struct candidate swap = c[i];
        c[i] = c[child];
        c[child] = swap;
    }
}

/* The k best of n logits, best first. Few of the many are ever better than the worst of k so far. */
static void select_best(const float *logits, int n, int k, struct candidate *best) {
    for (int i = 0; i < k; i++) best[i] = candidate(logits, i);
    for (int i = k / 2 - 1; i >= 0; i--) sink(best, k, i);
    for (int i = k; i < n; i++)
        if (logits[i] > best[0].logit) {
            best[0] = candidate(logits, i);
            sink(best, k, 0);
        }
    qsort(best, (size_t)k, sizeof *best, compare);
}

/* The id of the largest logit, or -1 where that is no number. */
static int likeliest(const float *logits, int n) {
    int best = -1;
    float most = -INFINITY;
    for (int i = 0; i < n; i++)
        if (logits[i] > most) most = logits[best = i];
    return isfinite(most) ? best : -1;
}

/* p = exp((logit - most) / temp), and their sum. */
static double weigh(struct candidate *c, int n, float most, float temp) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += c[i].p = expf((c[i].logit - most) / temp);
    return sum;
}

/* How many of the n best candidates top-p and min-p leave, at least one; `sum` is that of all weights that count. */
static int truncate_tail(const struct sampler_options *o, struct candidate *c, int n, double sum) {
    if (o->top_p < 1) {
        double so_far = 0;
        int keep = 0;
        while (keep < n && so_far < o->top_p * sum) so_far += c[keep++].p;
        n = keep > 0 ? keep : 1;
    }
    if (o->min_p > 0) {
        int keep = 1;
        while (keep < n && c[keep].p >= o->min_p * c[0].p) keep++;
        n = keep;
    }
    return n;
}

/* The candidates that the filters leave: the best, best first, or all in the order of their ids. */
static int filter(const struct sampler_options *o, const float *logits, int n, float most, struct candidate *c) {
    if (o->top_k > 0 && o->top_k < n) {
        select_best(logits, n, o->top_k, c);
        return truncate_tail(o, c, o->top_k, weigh(c, o->top_k, most, 1));
    }
    for (int i = 0; i < n; i++) c[i] = candidate(logits, i);
    if (o->top_p >= 1 && o->min_p <= 0) return n;
    const double sum = weigh(c, n, most, 1);
    for (int k = n < FEW_BEST ? n : FEW_BEST;; k = k < n / 8 ? 8 * k : n) { /* sorting all takes longer than the model */
        select_best(logits, n, k, c);
        weigh(c, k, most, 1);
        int keep = truncate_tail(o, c, k, sum);
        if (keep < k || k == n) return keep;
    }
}

int sampler_sample(struct sampler *s, const float *logits) {
    const struct sampler_options *o = &s->options;
    struct candidate *c = s->candidates;
    if (o->repeat_penalty != 1) logits = penalise_repeats(s, logits);
    const int best = likeliest(logits, s->n_vocab);
    if (best < 0 || o->temp <= 0) return best;

    const int n = filter(o, logits, s->n_vocab, logits[best], c);
    double r = weigh(c, n, logits[best], o->temp) * random_uniform(s);
    for (int i = 0; i < n; i++)
        if ((r -= c[i].p) < 0) return c[i].id;
    return best; /* r was all but the whole sum, and rounded */
}
