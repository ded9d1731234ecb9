/* generate.c - the main job: continue a prompt. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "app.h"
#include "output.h"

int app_flush(struct error *err) {
    if (fflush(stdout) == 0 && !ferror(stdout)) return 0;
    if (errno == EINTR) { /* Ctrl-C while the reader made us wait: no failure, and the job sees it by itself */
        clearerr(stdout);
        return 0;
    }
    return fail(err, "standard output: can't write: %s", strerror(errno ? errno : EPIPE));
}

int app_print_token(struct app *app, struct utf8_stream *stream, int token, struct error *err) {
    char *piece = app->piece, *text = piece + tokenizer_max_piece(app->tokenizer);
    size_t n = tokenizer_piece(app->tokenizer, token, false, piece, tokenizer_max_piece(app->tokenizer));
    n = utf8_stream_push(stream, piece, n, text);
    fwrite(text, 1, n, stdout);
    return app_flush(err);
}

int app_generate(struct app *app, int n, struct error *err) {
    struct session *s = app->session;
    struct utf8_stream stream = {0};
    double start = app_clock();
    if (n != 0 && session_whole_prompt(s))
        return fail_usage(err, "--attn mosa:select=sequence chooses among the tokens of a whole text: it can score "
                          "one (--logits, --score), but not generate; use select=prefix");
    session_logits(s, s->n - 1, 1, app->logits);
    for (int i = 0; n < 0 || i < n; i++) {
        int token = sampler_sample(&app->sampler, app->logits);
        if (token < 0) return fail(err, "%s: the logits are not numbers: its weights are damaged", app->options.model);
        if (tokenizer_is_eog(app->tokenizer, token)) break;
        sampler_accept(&app->sampler, token);
        if (app_print_token(app, &stream, token, err)) return -1;
        app->figures.gen_tokens++;
        if (!session_fits(s, 1)) {
            fprintf(stderr, "\nstopped: the context of %d tokens is full (-c)\n", s->options.n_ctx);
            break;
        }
        if (session_forward(s, &token, 1, PHASE_GENERATE, err)) return -1;
        if (*app->interrupted) break;
        session_logits(s, 0, 1, app->logits);
    }
    app->figures.gen_seconds += app_clock() - start;
    char rest[UTF8_STREAM_ROOM(0)];
    fwrite(rest, 1, utf8_stream_flush(&stream, rest), stdout);
    return app_flush(err);
}

/* The prompt's tokens that a restored session doesn't have already. */
static int prefill_rest(struct app *app, const struct token_list *prompt, struct error *err) {
    int n_restored = app->session->n_history;
    struct token_list rest = {.ids = prompt->ids + n_restored, .n = prompt->n - n_restored};
    return rest.n ? app_prefill(app, &rest, NULL, NULL, err) : 0;
}

int job_generate(struct app *app, struct error *err) {
    struct token_list prompt = {0};
    int status = app_read_prompt(app, &prompt, err);
    if (!status && prompt.n == 0)
        status = fail(err, "the prompt is empty: give some text with -p, -f or on standard input");
    for (int i = 0; i < prompt.n && !status; i++) sampler_accept(&app->sampler, prompt.ids[i]);
    if (!status) status = app_restore(app, &prompt, err);
    if (!status) status = prefill_rest(app, &prompt, err);
    token_list_free(&prompt);
    if (!status && !*app->interrupted && app->options.n_predict != 0) {
        status = app_generate(app, app->options.n_predict, err);
        if (isatty(STDOUT_FILENO)) putchar('\n');
    }
    return status ? -1 : app_save(app, err);
}

/* ---- --logits ---- */

#define LOGIT_ROWS 32 /* rows of logits held at a time */

struct logits_writer {
    FILE *file;
    const char *path;
    float *rows; /* [LOGIT_ROWS, n_vocab] */
};

static int write_batch_logits(struct app *app, void *arg, int first, int n, struct error *err) {
    struct logits_writer *writer = arg;
    size_t n_vocab = (size_t)app->model->config.n_vocab;
    (void)first;
    for (int row = 0; row < n; row += LOGIT_ROWS) {
        int rows = n - row < LOGIT_ROWS ? n - row : LOGIT_ROWS;
        session_logits(app->session, row, rows, writer->rows);
        if (fwrite(writer->rows, sizeof(float) * n_vocab, (size_t)rows, writer->file) != (size_t)rows)
            return fail(err, "%s: can't write: %s", writer->path, strerror(errno));
    }
    return 0;
}

int job_logits(struct app *app, struct error *err) {
    struct token_list prompt = {0};
    struct output out;
    struct logits_writer writer = {.path = app->options.logits};
    writer.rows = malloc(sizeof(float) * LOGIT_ROWS * (size_t)app->model->config.n_vocab);
    int status = writer.rows ? app_read_prompt(app, &prompt, err) : fail(err, "out of memory for logits");
    if (!status && prompt.n == 0) status = fail(err, "the prompt is empty: there are no logits to write");
    if (!status) status = output_open(&out, app->options.logits, err);
    if (!status) {
        writer.file = out.file;
        status = app_prefill(app, &prompt, write_batch_logits, &writer, err);
        if (status || *app->interrupted) output_discard(&out);
        else status = output_commit(&out, err);
    }
    token_list_free(&prompt);
    free(writer.rows);
    return status;
}

int job_tokenize(struct app *app, struct error *err) {
    struct token_list prompt = {0};
    int status = app_read_prompt(app, &prompt, err);
    for (int i = 0; i < prompt.n && !status; i++) printf("%s%d", i ? " " : "", prompt.ids[i]);
    token_list_free(&prompt);
    if (status) return -1;
    putchar('\n');
    return app_flush(err);
}
