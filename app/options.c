#include "options.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

enum kind { FLAG, INT, FLOAT, TEXT };

struct option {
    const char *name;      /* without dashes; one letter takes one dash */
    const char *value;     /* name of its value in --help */
    enum kind kind;
    size_t offset;         /* in struct options */
    double min, max;
    const char *help;
};

#define AT(field) offsetof(struct options, field)

static const struct option table[] = {
    {"m", "MODEL", TEXT, AT(model), 0, 0, "GGUF file (or the first argument without a dash); default " DEFAULT_MODEL},
    {"p", "TEXT", TEXT, AT(prompt), 0, 0, "prompt"},
    {"f", "FILE", TEXT, AT(prompt_file), 0, 0, "prompt: the bytes of FILE as they are"},
    {"ids", "IDS", TEXT, AT(ids), 0, 0, "prompt: token ids, \"1 2 3\" or @FILE"},
    {"n", "N", INT, AT(n_predict), -1, INT_MAX, "tokens to generate; -1 (default): until the end"},
    {"c", "N", INT, AT(n_ctx), 0, INT_MAX / 2, "limit of the context; default (0): what the checkpoint was trained for"},
    {"t", "N", INT, AT(n_threads), 1, 512, "threads; default: one per processor"},
    {"b", "N", INT, AT(n_batch), 1, 1 << 16, "tokens of a prompt per forward pass; default 512"},
    {"temp", "X", FLOAT, AT(temp), 0, 1000, "temperature; default 0.8; 0 is greedy"},
    {"top-k", "N", INT, AT(top_k), 0, INT_MAX, "sample among the N most likely tokens; default 40; 0: all"},
    {"top-p", "X", FLOAT, AT(top_p), 0, 1, "... among the most likely ones of total probability X; default 0.95"},
    {"min-p", "X", FLOAT, AT(min_p), 0, 1, "... among those X times as likely as the best; default 0.05"},
    {"repeat-penalty", "X", FLOAT, AT(repeat_penalty), 0.01, 100, "penalty of the last 64 tokens; default 1 (none)"},
    {"seed", "N", TEXT, AT(seed_text), 0, 0, "seed of the sampler; default: random, and printed"},
    {"i", NULL, FLAG, AT(interactive), 0, 0, "interactive chat (default on a terminal without a prompt)"},
    {"chat", NULL, FLAG, AT(chat), 0, 0, "put the prompt into the checkpoint's chat template"},
    {"system", "TEXT", TEXT, AT(system), 0, 0, "system message of a chat"},
    {"raw", NULL, FLAG, AT(raw), 0, 0, "no chat template: text goes in as it is"},
    {"attn", "SPEC", TEXT, AT(attn), 0, 0, "attention: mode[:key=value,...][@layers], joined by ';'; see --list-attn"},
    {"kv-evict", "SPEC", TEXT, AT(kv_evict), 0, 0, "eviction: policy[:budget=N,sink=S,recent=W]; see --list-evict"},
    {"kv-type", "T", TEXT, AT(kv_type), 0, 0, "cache type: f32, f16 (default), q8_0, q4_0; K,V may differ"},
    {"adapter", "FILE", TEXT, AT(adapter), 0, 0, "sidecar with attention parameters and LoRA deltas"},
    {"rope-scaling", "T", TEXT, AT(rope_scaling), 0, 0, "none, linear or yarn; default: as the file says"},
    {"rope-scale", "X", FLOAT, AT(rope_scale), 1e-3, 1e6, "factor by which the context is stretched"},
    {"rope-base", "X", FLOAT, AT(rope_base), 1.001, 1e12, "base of the RoPE frequencies"},
    {"session", "FILE", TEXT, AT(session), 0, 0, "resume from FILE if it fits, save to it at the end"},
    {"tokenize", NULL, FLAG, AT(tokenize), 0, 0, "print the prompt's token ids and exit"},
    {"logits", "FILE", TEXT, AT(logits), 0, 0, "write the prompt's logits (float32 [n_prompt, n_vocab]) and exit"},
    {"score", "FILE", TEXT, AT(score), 0, 0, "perplexity of a text"},
    {"compare", "SPEC", TEXT, AT(compare), 0, 0, "with --score: how far it is from the same text under this --attn"},
    {"score-prompt", "N", INT, AT(score_prompt), 1, INT_MAX, "with --score: N tokens are a prompt, the others go in one by one and count"},
    {"bench", NULL, FLAG, AT(bench), 0, 0, "prompt and generation speed as CSV"},
    {"depths", "N,...", TEXT, AT(depths), 0, 0, "context depths of --bench; default 512"},
    {"stats", "FILE", TEXT, AT(stats), 0, 0, "write a JSON object of figures at the end"},
    {"isa", "NAME", TEXT, AT(isa), 0, 0, "kernels to use; default: the fastest this machine runs"},
    {"no-mmap", NULL, FLAG, AT(no_mmap), 0, 0, "read the model into memory, in huge pages, instead of mapping it"},
    {"inspect", NULL, FLAG, AT(inspect), 0, 0, "what the file holds"},
    {"list-attn", NULL, FLAG, AT(list_attn), 0, 0, "attention modes and their options"},
    {"list-evict", NULL, FLAG, AT(list_evict), 0, 0, "eviction policies and their options"},
    {"q", NULL, FLAG, AT(quiet), 0, 0, "no progress, no speeds"},
    {"version", NULL, FLAG, AT(version), 0, 0, "version"},
    {"h", NULL, FLAG, AT(help), 0, 0, "this help"},
};

#define N_OPTIONS (sizeof table / sizeof *table)

/* Names that other programs have taught people. */
static const struct { const char *alias, *name; } aliases[] = {
    {"help", "h"}, {"model", "m"}, {"prompt", "p"}, {"file", "f"}, {"predict", "n"}, {"n-predict", "n"},
    {"ctx-size", "c"}, {"threads", "t"}, {"batch-size", "b"}, {"interactive", "i"}, {"quiet", "q"},
    {"s", "seed"}, {"system-prompt", "system"}, {"rope-freq-base", "rope-base"},
};

static const struct option *find(const char *name, size_t len) {
    for (size_t i = 0; i < sizeof aliases / sizeof *aliases; i++)
        if (strlen(aliases[i].alias) == len && !memcmp(aliases[i].alias, name, len))
            return find(aliases[i].name, strlen(aliases[i].name));
    for (size_t i = 0; i < N_OPTIONS; i++)
        if (strlen(table[i].name) == len && !memcmp(table[i].name, name, len)) return &table[i];
    return NULL;
}

static int store(struct options *o, const struct option *opt, const char *arg, const char *value, struct error *err) {
    char *field = (char *)o + opt->offset;
    if (opt->kind == TEXT) {
        memcpy(field, &value, sizeof value);
        return 0;
    }
    char *end;
    errno = 0;
    double x = opt->kind == INT ? (double)strtoll(value, &end, 10) : strtod(value, &end);
    if (end == value || *end || errno || !isfinite(x))
        return fail_usage(err, "%s takes %s, not '%s'", arg, opt->kind == INT ? "an integer" : "a number", value);
    if (x < opt->min || x > opt->max)
        return fail_usage(err, "%s must be from %.10g to %.10g, not %s", arg, opt->min, opt->max, value);
    if (opt->kind == INT) *(int *)(void *)field = (int)x;
    else *(float *)(void *)field = (float)x;
    return 0;
}

/* An argument that begins with a dash; *i moves past its value. */
static int parse_option(struct options *o, int argc, char **argv, int *i, struct error *err) {
    const char *arg = argv[*i];
    bool is_long = arg[1] == '-';
    const char *name = arg + 1 + is_long;
    const char *equals = strchr(name, '=');
    size_t len = equals ? (size_t)(equals - name) : strlen(name);
    const struct option *opt = find(name, len);
    if (!opt || is_long != (len > 1)) return fail_usage(err, "unknown option '%s': see -h", arg);
    if (opt->kind == FLAG) {
        if (equals) return fail_usage(err, "%.*s takes no value", (int)(equals - arg), arg);
        const bool on = true;
        memcpy((char *)o + opt->offset, &on, sizeof on);
        return 0;
    }
    if (equals) return store(o, opt, argv[*i], equals + 1, err);
    if (*i + 1 == argc) return fail_usage(err, "%s needs a value (%s)", arg, opt->value);
    return store(o, opt, arg, argv[++*i], err);
}

static int parse_seed(struct options *o, struct error *err) {
    if (!o->seed_text) return 0;
    char *end;
    errno = 0;
    o->seed = strtoull(o->seed_text, &end, 10);
    if (!isdigit((unsigned char)*o->seed_text) || *end || errno)
        return fail_usage(err, "--seed takes a whole number, not '%s'", o->seed_text);
    return 0;
}

/* Options that exclude or need each other. */
static int check(const struct options *o, struct error *err) {
    if (!!o->prompt + !!o->prompt_file + !!o->ids > 1) return fail_usage(err, "-p, -f and --ids exclude each other");
    if (o->tokenize + !!o->logits + !!o->score + o->bench + o->inspect + o->interactive > 1)
        return fail_usage(err, "--tokenize, --logits, --score, --bench, --inspect and -i exclude each other");
    if (o->session && (o->logits || o->score || o->bench))
        return fail_usage(err, "--session goes with generating and chatting only");
    if (o->compare && !o->score) return fail_usage(err, "--compare needs --score FILE");
    if (o->score_prompt && !o->score) return fail_usage(err, "--score-prompt needs --score FILE");
    if (o->depths && !o->bench) return fail_usage(err, "--depths needs --bench");
    if (o->chat && o->raw) return fail_usage(err, "--chat and --raw exclude each other");
    if (o->chat && o->ids) return fail_usage(err, "--chat needs a text: --ids are token ids already");
    return 0;
}

int options_parse(struct options *o, int argc, char **argv, struct error *err) {
    *o = (struct options){
        .n_predict = -1, .n_batch = 512, .temp = 0.8f, .top_k = 40, .top_p = 0.95f, .min_p = 0.05f,
        .repeat_penalty = 1, .kv_type = "f16",
    };
    for (int i = 1; i < argc; i++) {
        if (argv[i][0] == '-' && argv[i][1]) {
            if (parse_option(o, argc, argv, &i, err)) return -1;
        } else if (o->model) {
            return fail_usage(err, "'%s' is one argument too many: the model is '%s'; quote the prompt and give it with -p",
                        argv[i], o->model);
        } else {
            o->model = argv[i];
        }
    }
    return parse_seed(o, err) || check(o, err) ? -1 : 0;
}

void options_help(FILE *out) {
    fprintf(out, "usage: run [MODEL] [options]\n\nOptions are written --name value or --name=value.\n\n");
    for (size_t i = 0; i < N_OPTIONS; i++) {
        char left[64];
        snprintf(left, sizeof left, "%s%s %s", table[i].name[1] ? "--" : "-", table[i].name,
                 table[i].value ? table[i].value : "");
        fprintf(out, "  %-20s %s\n", left, table[i].help);
    }
    fprintf(out, "\nThe generated text goes to standard output, everything else to standard error.\n"
                 "Exit status: 0 done, 1 failed, 2 usage, 130 interrupted.\n");
}
