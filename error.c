#include "error.h"

#include <stdarg.h>
#include <stdio.h>

static void format_text(struct error *err, bool usage, const char *format, va_list args) {
    if (!err) return;
    *err = (struct error){.usage = usage};
    vsnprintf(err->text, sizeof err->text, format, args);
}

int fail(struct error *err, const char *format, ...) {
    va_list args;
    va_start(args, format);
    format_text(err, false, format, args);
    va_end(args);
    return -1;
}

int fail_usage(struct error *err, const char *format, ...) {
    va_list args;
    va_start(args, format);
    format_text(err, true, format, args);
    va_end(args);
    return -1;
}

int fail_interrupted(struct error *err) {
    fail(err, "interrupted");
    if (err) err->interrupted = true;
    return -1;
}
