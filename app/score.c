/* score.c - perplexity of a text, and how far one attention is from another on it. */
#include <math.h>
#include <stdlib.h>

#include "app.h"

#define SCORE_ROWS 32 /* rows of logits held at a time */

/* Sums over the tokens that are predicted: 1.. */
struct score {
    const struct token_list *tokens;
    struct session *other;          /* --compare, or NULL */
    float *logits, *other_logits;   /* [SCORE_ROWS, n_vocab] */
    double nll, other_nll;          /* negative log likelihood in nats */
    double kl;                      /* KL(other || this) in nats */
    int same_top;                   /* both find the same token most likely */
};

/* log of the sum of exp(logits) */
static double log_sum_exp(const float *logits, int n) {
    float max = logits[0];
    for (int i = 1; i < n; i++) max = fmaxf(max, logits[i]);
    double sum = 0;
    for (int i = 0; i < n; i++) sum += expf(logits[i] - max);
    return log(sum) + max;
}

static int best(const float *logits, int n) {
    int b = 0;
    for (int i = 1; i < n; i++)
        if (logits[i] > logits[b]) b = i;
    return b;
}

/* KL(q || p) of the distributions whose logits and log-sums are given. */
static double divergence(const float *q, double q_sum, const float *p, double p_sum, int n) {
    double kl = 0;
    for (int i = 0; i < n; i++) {
        double log_q = q[i] - q_sum;
        kl += exp(log_q) * (log_q - (p[i] - p_sum));
    }
    return kl;
}

static void score_row(struct score *score, int row, int n_vocab, int target) {
    const float *p = score->logits + (size_t)row * (size_t)n_vocab;
    double p_sum = log_sum_exp(p, n_vocab);
    score->nll += p_sum - p[target];
    if (!score->other) return;
    const float *q = score->other_logits + (size_t)row * (size_t)n_vocab;
    double q_sum = log_sum_exp(q, n_vocab);
    score->other_nll += q_sum - q[target];
    score->kl += divergence(q, q_sum, p, p_sum, n_vocab);
    score->same_top += best(p, n_vocab) == best(q, n_vocab);
}

static int score_batch(struct app *app, void *arg, int first, int n, struct error *err) {
    struct score *score = arg;
    const struct token_list *tokens = score->tokens;
    int n_vocab = app->model->config.n_vocab;
    if (score->other && session_forward(score->other, tokens->ids + first, n, app->session->phase, err)) return -1;
    for (int row = 0; row < n; row += SCORE_ROWS) {
        int rows = n - row < SCORE_ROWS ? n - row : SCORE_ROWS;
        session_logits(app->session, row, rows, score->logits);
        if (score->other) session_logits(score->other, row, rows, score->other_logits);
        for (int i = 0; i < rows && first + row + i + 1 < tokens->n; i++)
            score_row(score, i, n_vocab, tokens->ids[first + row + i + 1]);
    }
    return 0;
}

/* The second session of --compare: another attention, nothing evicted. */
static int open_other(struct app *app, struct score *score, struct error *err) {
    if (!app->options.compare) return 0;
    struct session_options options = app->session->options;
    options.attn = app->options.compare;
    options.kv_evict = NULL;
    score->other = session_create(app->model, &options, err);
    return score->other ? 0 : -1;
}

static int read_text(const struct app *app, struct token_list *tokens, struct error *err) {
    char *text;
    size_t len;
    if (app_read_file(app->options.score, &text, &len, err)) return -1;
    int status = tokenizer_encode(app->tokenizer, text, len, true, true, tokens, err);
    free(text);
    if (!status && tokens->n < 2)
        return fail(err, "%s: a score needs at least two tokens, the text has %d", app->options.score, tokens->n);
    return status;
}

static void report(struct app *app, const struct score *score) {
    int n = score->tokens->n - 1;
    struct comparison *c = &app->comparison;
    c->tokens = n + 1;
    c->perplexity = exp(score->nll / n);
    printf("tokens: %d\nnll: %.6f\nperplexity: %.4f\n", n + 1, score->nll / n, c->perplexity);
    if (!score->other) return;
    c->other_perplexity = exp(score->other_nll / n);
    c->mean_kl = score->kl / n;
    c->top1_agreement = (double)score->same_top / n;
    printf("perplexity of %s: %.4f\nmean_kl: %.6f\ntop1_agreement: %.4f\n", app->options.compare,
           c->other_perplexity, c->mean_kl, c->top1_agreement);
}

int job_score(struct app *app, struct error *err) {
    struct token_list tokens = {0};
    struct score score = {.tokens = &tokens};
    size_t bytes = sizeof(float) * SCORE_ROWS * (size_t)app->model->config.n_vocab;
    score.logits = malloc(bytes);
    score.other_logits = app->options.compare ? malloc(bytes) : NULL;
    int status = !score.logits || (app->options.compare && !score.other_logits) ? fail(err, "out of memory for logits")
                                                                                : read_text(app, &tokens, err);
    if (!status) status = open_other(app, &score, err);
    if (!status) status = app_prefill(app, &tokens, score_batch, &score, err);
    if (!status && !*app->interrupted) {
        report(app, &score);
        status = app_flush(err);
    }
    session_free(score.other);
    token_list_free(&tokens);
    free(score.logits);
    free(score.other_logits);
    return status;
}
