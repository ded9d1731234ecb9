#include "params.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void store(const struct param *p, void *options, double value) {
    char *field = (char *)options + p->offset;
    if (p->type == PARAM_FLOAT) *(float *)(void *)field = (float)value;
    else *(int *)(void *)field = (int)value;
}

static double load(const struct param *p, const void *options) {
    const char *field = (const char *)options + p->offset;
    return p->type == PARAM_FLOAT ? *(const float *)(const void *)field : *(const int *)(const void *)field;
}

void params_defaults(const struct param *table, void *options) {
    for (const struct param *p = table; p->name; p++) store(p, options, p->initial);
}

static bool in_range(const struct param *p, double value) {
    return p->type == PARAM_BOOL ? value == 0 || value == 1 : value >= p->min && value <= p->max;
}

int params_from_file(const struct param *table, void *options, const struct gguf *file, struct error *err) {
    for (const struct param *p = table; p->name; p++) {
        double value;
        bool flag;
        int64_t integer;
        if (!p->gguf_key) continue;
        if (p->type == PARAM_BOOL && gguf_get_bool(file, p->gguf_key, &flag)) value = flag;
        else if (p->type == PARAM_FLOAT && gguf_get_float(file, p->gguf_key, &value)) ;
        else if (p->type == PARAM_INT && gguf_get_int(file, p->gguf_key, &integer)) value = (double)integer;
        else continue;
        if (!in_range(p, value))
            return fail(err, "%s: key '%s' is %.10g, outside %.10g..%.10g", gguf_path(file), p->gguf_key, value, p->min,
                        p->max);
        store(p, options, value);
    }
    return 0;
}

/* Index of value (len bytes) in "a|b|c", or -1. */
static int choice_index(const char *choices, const char *value, size_t len) {
    for (int i = 0; ; i++) {
        size_t n = strcspn(choices, "|");
        if (n == len && !memcmp(choices, value, n)) return i;
        if (!choices[n]) return -1;
        choices += n + 1;
    }
}

static int parse_value(const struct param *p, void *options, const char *value, size_t len, const char *owner,
                       struct error *err) {
    if (p->type == PARAM_CHOICE) {
        int index = choice_index(p->choices, value, len);
        if (index < 0)
            return fail_usage(err, "%s: %s must be one of %s, not '%.*s'", owner, p->name, p->choices, (int)len, value);
        store(p, options, index);
        return 0;
    }
    if (p->choices && choice_index(p->choices, value, len) == 0) {
        store(p, options, p->initial);
        return 0;
    }
    char number[32];
    char *end = number;
    double x = 0;
    if (len > 0 && len < sizeof number) {
        memcpy(number, value, len);
        number[len] = 0;
        x = strtod(number, &end);
    }
    bool ok = end != number && !*end && isfinite(x) && (p->type == PARAM_FLOAT || x == floor(x)) && in_range(p, x);
    if (!ok && p->type == PARAM_BOOL)
        return fail_usage(err, "%s: %s must be 0 or 1, not '%.*s'", owner, p->name, (int)len, value);
    if (!ok)
        return fail_usage(err, "%s: %s must be %s from %.10g to %.10g, not '%.*s'", owner, p->name,
                    p->type == PARAM_INT ? "an integer" : "a number", p->min, p->max, (int)len, value);
    store(p, options, x);
    return 0;
}

static const struct param *find(const struct param *table, const char *name, size_t len) {
    for (const struct param *p = table; p->name; p++)
        if (strlen(p->name) == len && !memcmp(p->name, name, len)) return p;
    return NULL;
}

static void list_names(const struct param *table, char *buf, size_t size) {
    size_t used = 0;
    buf[0] = 0;
    for (const struct param *p = table; p->name && used < size; p++)
        used += (size_t)snprintf(buf + used, size - used, "%s%s", p == table ? "" : ", ", p->name);
}

int params_parse(const struct param *table, void *options, const char *text, size_t len, const char *owner,
                 struct error *err) {
    const char *end = text + len;
    while (text < end) {
        const char *comma = memchr(text, ',', (size_t)(end - text));
        const char *stop = comma ? comma : end;
        const char *equals = memchr(text, '=', (size_t)(stop - text));
        const struct param *p = equals ? find(table, text, (size_t)(equals - text)) : NULL;
        if (!p) {
            char names[200];
            list_names(table, names, sizeof names);
            return fail_usage(err, "%s: '%.*s' is not one of its options (%s)", owner, (int)(stop - text), text, names);
        }
        if (parse_value(p, options, equals + 1, (size_t)(stop - equals - 1), owner, err)) return -1;
        text = comma ? comma + 1 : end;
    }
    return 0;
}

static int value_text(const struct param *p, double value, char *buf, size_t size) {
    const char *choice = p->choices;
    if (p->type == PARAM_FLOAT && choice && value == (float)p->initial)
        return snprintf(buf, size, "%s", choice);
    if (p->type != PARAM_CHOICE) return snprintf(buf, size, "%g", value);
    for (int i = 0; i < (int)value; i++) choice += strcspn(choice, "|") + 1;
    return snprintf(buf, size, "%.*s", (int)strcspn(choice, "|"), choice);
}

void params_initial(const struct param *p, char *buf, size_t size) { value_text(p, p->initial, buf, size); }

void params_text(const struct param *table, const void *options, char *buf, size_t size) {
    size_t used = 0;
    if (size) buf[0] = 0;
    for (const struct param *p = table; p->name && used < size; p++) {
        used += (size_t)snprintf(buf + used, size - used, "%s%s=", p == table ? "" : ",", p->name);
        if (used < size) used += (size_t)value_text(p, load(p, options), buf + used, size - used);
    }
}
