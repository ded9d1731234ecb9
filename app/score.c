/* score.c - perplexity of a text. */
#include <math.h>
#include <stdlib.h>

#include "app.h"

#define SCORE_ROWS 32 /* rows of logits held at a time */

struct score {
    const struct token_list *tokens;
    float *logits;     /* [SCORE_ROWS, n_vocab] */
    double nll;        /* negative log likelihood of tokens 1.., in nats */
};

/* -log softmax(logits)[target] */
static double cross_entropy(const float *logits, int n, int target) {
    float max = logits[0];
    for (int i = 1; i < n; i++) max = fmaxf(max, logits[i]);
    double sum = 0;
    for (int i = 0; i < n; i++) sum += expf(logits[i] - max);
    return log(sum) + max - logits[target];
}

static int score_batch(struct app *app, void *arg, int first, int n, struct error *err) {
    struct score *score = arg;
    int n_vocab = app->model->config.n_vocab;
    (void)err;
    for (int row = 0; row < n; row += SCORE_ROWS) {
        int rows = n - row < SCORE_ROWS ? n - row : SCORE_ROWS;
        session_logits(app->session, row, rows, score->logits);
        for (int i = 0; i < rows; i++) {
            int next = first + row + i + 1;
            if (next < score->tokens->n)
                score->nll += cross_entropy(score->logits + (size_t)i * n_vocab, n_vocab, score->tokens->ids[next]);
        }
    }
    return 0;
}

int job_score(struct app *app, struct error *err) {
    char *text;
    size_t len;
    if (app_read_file(app->options.score, &text, &len, err)) return -1;
    struct token_list tokens = {0};
    int status = tokenizer_encode(app->tokenizer, text, len, true, true, &tokens, err);
    free(text);
    struct score score = {.tokens = &tokens};
    score.logits = malloc(sizeof(float) * SCORE_ROWS * (size_t)app->model->config.n_vocab);
    if (!status && !score.logits) status = fail(err, "out of memory for logits");
    if (!status && tokens.n < 2)
        status = fail(err, "%s: a score needs at least two tokens, the text has %d", app->options.score, tokens.n);
    if (!status) status = app_prefill(app, &tokens, score_batch, &score, err);
    if (!status && !*app->interrupted) {
        double nll = score.nll / (tokens.n - 1);
        printf("tokens: %d\nnll: %.6f\nperplexity: %.4f\n", tokens.n, nll, exp(nll));
        status = app_flush(err);
    }
    token_list_free(&tokens);
    free(score.logits);
    return status;
}
