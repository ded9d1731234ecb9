/* score.c - perplexity of a text, and how far one attention is from another on it. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "app.h"

#define SCORE_ROWS 32 /* rows of logits held at a time */

/* Sums over the tokens that count. */
struct score {
    const struct token_list *tokens;
    int first;                      /* the first one that counts: 1, or where --score-prompt ends */
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
    if (score->other) {
        if (session_forward(score->other, tokens->ids + first, n, app->session->phase, err)) return -1;
        session_watch_hold(score->other, app->session); /* as the next batch will find it */
    }
    if (first + n < score->first) return 0;
    for (int row = 0; row < n; row += SCORE_ROWS) {
        int rows = n - row < SCORE_ROWS ? n - row : SCORE_ROWS;
        session_logits(app->session, row, rows, score->logits);
        if (score->other) session_logits(score->other, row, rows, score->other_logits);
        for (int i = 0; i < rows; i++) {
            int next = first + row + i + 1;
            if (next >= score->first && next < tokens->n) score_row(score, i, n_vocab, tokens->ids[next]);
        }
    }
    return 0;
}

/* What is wrong with the spec is said of --attn. */
static int blame_compare(struct error *err) {
    const char own[] = "--attn";
    char rest[sizeof err->text];
    if (strncmp(err->text, own, sizeof own - 1)) return -1;
    memcpy(rest, err->text + sizeof own - 1, sizeof rest - (sizeof own - 1));
    return fail_usage(err, "--compare%s", rest);
}

/* The second session of --compare: another attention, nothing evicted. */
static int open_other(struct app *app, struct score *score, struct error *err) {
    if (!app->options.compare) return 0;
    struct session_options options = app->session->options;
    options.attn = app->options.compare;
    options.kv_evict = NULL;
    options.measure = false;
    if (session_whole_prompt(app->session)) options.n_batch = score->tokens->n; /* as app_prefill() does */
    score->other = app->comparison.other = session_create(app->model, &options, err);
    if (!score->other) return blame_compare(err);
    return app->session->evict ? session_watch(score->other, err) : 0;
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

/* --score-prompt: what follows it goes in like generated text. */
static int score_generated(struct app *app, struct score *score, struct error *err) {
    const struct token_list *tokens = score->tokens;
    double start = app_clock();
    for (int i = score->first; i < tokens->n && !*app->interrupted; i++) {
        if (session_forward(app->session, tokens->ids + i, 1, PHASE_GENERATE, err)) return -1;
        if (score_batch(app, score, i, 1, err)) return -1;
        app->figures.gen_tokens++;
    }
    app->figures.gen_seconds = app_clock() - start;
    return 0;
}

static int score_text(struct app *app, struct score *score, struct error *err) {
    struct token_list prompt = *score->tokens;
    int asked = app->options.score_prompt;
    if (!session_fits(app->session, prompt.n))
        return fail(err, "%s: has %d tokens, but only %d fit into the context: raise -c",
                    app->options.score, prompt.n, app->session->options.n_ctx);
    if (asked >= prompt.n)
        return fail(err, "%s: has %d tokens: --score-prompt %d leaves none to score",
                    app->options.score, prompt.n, asked);
    score->first = asked ? asked : 1;
    if (asked) prompt.n = asked;
    if (app_prefill(app, &prompt, score_batch, score, err)) return -1;
    return asked ? score_generated(app, score, err) : 0;
}

static int report(struct app *app, const struct score *score, struct error *err) {
    int n = score->tokens->n - score->first;
    double recall, mass;
    struct comparison *c = &app->comparison;
    c->tokens = score->tokens->n;
    c->perplexity = exp(score->nll / n);
    if (!isfinite(c->perplexity))
        return fail(err, "%s: the logits are not numbers: its weights are damaged", app->options.model);
    printf("tokens: %d\nnll: %.6f\nperplexity: %.4f\n", c->tokens, score->nll / n, c->perplexity);
    if (!score->other) return app_flush(err);
    c->other_perplexity = exp(score->other_nll / n);
    c->mean_kl = score->kl / n;
    c->top1_agreement = (double)score->same_top / n;
    printf("perplexity of %s: %.4f\nmean_kl: %.6f\ntop1_agreement: %.4f\n", app->options.compare,
           c->other_perplexity, c->mean_kl, c->top1_agreement);
    if (app_measures(app, -1, &recall, &mass)) printf("attention_mass: %.4f\n", mass);
    double cached = session_watch_mass(score->other, -1);
    if (!isnan(cached)) printf("cached_mass: %.4f\n", cached);
    return app_flush(err);
}

int job_score(struct app *app, struct error *err) {
    struct token_list tokens = {0};
    struct score score = {.tokens = &tokens};
    size_t bytes = sizeof(float) * SCORE_ROWS * (size_t)app->model->config.n_vocab;
    score.logits = malloc(bytes);
    score.other_logits = app->options.compare ? malloc(bytes) : NULL;
    bool ok = score.logits && (score.other_logits || !app->options.compare);
    int status = ok ? read_text(app, &tokens, err) : fail(err, "out of memory for logits");
    if (!status) status = open_other(app, &score, err);
    if (!status) status = score_text(app, &score, err);
    if (!status && !*app->interrupted) status = report(app, &score, err);
    token_list_free(&tokens);
    free(score.logits);
    free(score.other_logits);
    return status;
}
