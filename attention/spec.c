#include "spec.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../model.h"

static int choose(struct attn_layer *layer, const struct attn_mode *mode, const char *params, size_t len,
                  const struct model *model, struct error *err) {
    layer->mode = mode;
    if (!mode->params) return len ? fail_usage(err, "--attn %s: this mode has no options", mode->name) : 0;
    layer->params = calloc(1, mode->params_bytes);
    if (!layer->params) return fail(err, "out of memory for the options of --attn %s", mode->name);
    char owner[64];
    snprintf(owner, sizeof owner, "--attn %s", mode->name);
    params_defaults(mode->params, layer->params);
    if (params_from_file(mode->params, layer->params, model->file, err)) return -1;
    if (model->adapter && params_from_file(mode->params, layer->params, model->adapter, err)) return -1;
    return params_parse(mode->params, layer->params, params, len, owner, err);
}

/* The next layer range "5", "5-7" or "9-" of a comma-separated list; advances *text. */
static int next_range(const char **text, const char *end, int n_layer, int *first, int *last, struct error *err) {
    const char *start = *text;
    const char *comma = memchr(start, ',', (size_t)(end - start));
    const char *stop = comma ? comma : end;
    char *p = NULL;
    long a = -1, b = -1;
    if (start < stop && *start >= '0' && *start <= '9') {
        a = b = strtol(start, &p, 10);
        if (p < stop && *p == '-') {
            b = n_layer - 1;
            if (++p < stop && *p >= '0' && *p <= '9') b = strtol(p, &p, 10);
        }
    }
    if (a < 0 || p != stop)
        return fail_usage(err, "--attn: '%.*s' is not a list of layers such as 0,3,5-7,9-", (int)(end - start), start);
    if (a >= n_layer || b >= n_layer || b < a)
        return fail_usage(err, "--attn: layers '%.*s' are not in 0-%d", (int)(stop - start), start, n_layer - 1);
    *first = (int)a;
    *last = (int)b;
    *text = comma ? comma + 1 : end;
    return comma && comma + 1 == end ? fail_usage(err, "--attn: a list of layers ends in a comma") : 0;
}

/* One "mode:options@layers". */
static int apply_part(const char *part, const char *end, struct attn_layer *layers, const struct model *model,
                      struct error *err) {
    const char *at = memchr(part, '@', (size_t)(end - part));
    const char *mode_end = at ? at : end;
    const char *colon = memchr(part, ':', (size_t)(mode_end - part));
    size_t name_len = (size_t)((colon ? colon : mode_end) - part);
    const struct attn_mode *mode = attn_mode_find(part, name_len);
    if (!mode)
        return fail_usage(err, "--attn: there is no mode '%.*s': see --list-attn", (int)(name_len < 60 ? name_len : 60),
                    part);
    const char *params = colon ? colon + 1 : mode_end;
    size_t params_len = (size_t)(mode_end - params);

    int n_layer = model->config.n_layer, first = 0, last = n_layer - 1;
    const char *range = at ? at + 1 : end;
    do {
        if (at && next_range(&range, end, n_layer, &first, &last, err)) return -1;
        for (int l = first; l <= last; l++) {
            if (layers[l].mode) return fail_usage(err, "--attn: layer %d is given two modes", l);
            if (choose(&layers[l], mode, params, params_len, model, err)) return -1;
        }
    } while (range < end);
    return 0;
}

int attn_spec_apply(const char *spec, struct attn_layer *layers, const struct model *model, struct error *err) {
    if (spec && !*spec) return fail_usage(err, "--attn is empty: see --list-attn");
    const char *part = spec;
    while (part) {
        const char *semicolon = strchr(part, ';');
        const char *end = semicolon ? semicolon : part + strlen(part);
        if (apply_part(part, end, layers, model, err)) return -1;
        part = semicolon ? semicolon + 1 : NULL;
    }
    for (int l = 0; l < model->config.n_layer; l++)
        if (!layers[l].mode && choose(&layers[l], attn_mode_find("dense", 5), "", 0, model, err)) return -1;
    return 0;
}
