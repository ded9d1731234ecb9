/* params.h - `key=value,...` options of attention modes and eviction policies.
 *
 * A mode describes its options in one table; it drives parsing, --list-attn and the error messages. */
#pragma once

#include <stddef.h>

#include "error.h"
#include "gguf.h"

enum param_type { PARAM_INT, PARAM_FLOAT, PARAM_BOOL, PARAM_CHOICE };

struct param {
    const char *name;       /* NULL ends a table */
    enum param_type type;
    size_t offset;          /* in the options struct: an int (INT, BOOL, CHOICE: the index) or a float (FLOAT) */
    double initial;         /* built-in default */
    double min, max;        /* INT and FLOAT */
    const char *choices;    /* CHOICE: "exact|page"; FLOAT: a word for the built-in default, or NULL */
    const char *gguf_key;   /* where a checkpoint may set it ("attention.moba.block_size"), or NULL */
    const char *help;
};

void params_defaults(const struct param *table, void *options);

/* Takes over the options that the file has keys for. */
int params_from_file(const struct param *table, void *options, const struct gguf *file, struct error *err);

/* Applies "key=value,..." (len bytes); `owner` is named in errors ("--attn moba"). */
int params_parse(const struct param *table, void *options, const char *text, size_t len, const char *owner,
                 struct error *err);

/* The options as "key=value,...". */
void params_text(const struct param *table, const void *options, char *buf, size_t size);

/* The built-in default of one option as text. */
void params_initial(const struct param *p, char *buf, size_t size);
