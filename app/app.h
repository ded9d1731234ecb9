/* app.h - what run.c's jobs (generate, chat, score, bench) share: one model, one session, the clock. */
#pragma once

#include <signal.h>

#include "../model.h"
#include "../sampler.h"
#include "../tokenizer/tokenizer.h"
#include "options.h"

/* Figures for --stats and the line at the end. */
struct figures {
    int prompt_tokens, gen_tokens;
    double prompt_seconds, gen_seconds, load_seconds;
};

/* What --score found, for --stats; all but the first line with --compare only. */
struct comparison {
    int tokens;                                /* 0: nothing was scored */
    double perplexity, other_perplexity;
    double mean_kl, top1_agreement;
    struct session *other;                     /* the text under the other attention, or NULL */
};

struct app {
    struct options options;
    const struct kernels *kernels;
    const struct gguf *file;                   /* the model's */
    struct model *model;                       /* NULL for the jobs that need the file alone */
    struct tokenizer *tokenizer;
    struct session *session;
    struct sampler sampler;
    float *logits;                             /* [n_vocab] */
    char *piece;                               /* room for one token's bytes and their printable form */
    struct figures figures;
    struct comparison comparison;
    volatile sig_atomic_t *interrupted;        /* SIGINT or SIGTERM once one came; a job may clear it */
};

/* Seconds on a steady clock. */
double app_clock(void);

/* The prompt of -p, -f, --ids or standard input as token ids, chat template applied where asked for. */
int app_read_prompt(const struct app *app, struct token_list *tokens, struct error *err);

/* A whole file (or, with path NULL, standard input) into *text, which the caller frees. A NUL
 * follows the text. */
int app_read_file(const char *path, char **text, size_t *len, struct error *err);

/* Runs prompt tokens through the session in batches of -b, with a progress bar on a terminal. After each
 * batch `on_batch` (may be NULL) may ask for its logits; `first` is the index of the batch's first token. */
typedef int (*app_batch_fn)(struct app *app, void *arg, int first, int n, struct error *err);
int app_prefill(struct app *app, const struct token_list *tokens, app_batch_fn on_batch, void *arg, struct error *err);

/* --session: fills the session from the file as far as its tokens begin the prompt (NULL: whatever they are), or
 * says on standard error why not; and writes it back. Nothing happens without the option. */
int app_restore(struct app *app, const struct token_list *prompt, struct error *err);
int app_save(struct app *app, struct error *err);

/* Generates up to n tokens (-1: until the end) from the logits of the last token and prints them as they
 * come. Stops at an end-of-generation token, a full context or Ctrl-C. */
int app_generate(struct app *app, int n, struct error *err);

/* The jobs. Each returns -1 with an error, or 0. */
int job_generate(struct app *app, struct error *err);
int job_chat(struct app *app, struct error *err);
int job_logits(struct app *app, struct error *err);
int job_score(struct app *app, struct error *err);
int job_bench(struct app *app, struct error *err);
int job_inspect(const struct gguf *file, struct error *err);
int job_tokenize(struct app *app, struct error *err);
int job_list_attn(struct error *err);
int job_list_evict(struct error *err);

/* Of the queries that a layer (-1: the layers that measure themselves) has compared with dense attention: the
 * share of the best keys found, 0 where the mode doesn't look for them, and of attention probability kept.
 * false where there are none. */
bool app_measures(const struct app *app, int layer, double *recall, double *mass);

/* The --stats object and the closing line of speeds. */
int app_write_stats(const struct app *app, const char *path, struct error *err);
void app_print_speeds(const struct app *app);

/* A token's text to standard output as far as it is complete. */
int app_print_token(struct app *app, struct utf8_stream *stream, int token, struct error *err);

/* Flushes standard output; a closed pipe or full disk is an error. */
int app_flush(struct error *err);
