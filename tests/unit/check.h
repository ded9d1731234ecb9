/* check.h - the few lines that a C unit test needs. */
#pragma once

#include <math.h>
#include <stdio.h>

static int checks_run, checks_failed;

#define CHECK(cond)                                                          \
    do {                                                                     \
        checks_run++;                                                        \
        if (!(cond)) {                                                       \
            checks_failed++;                                                 \
            printf("%s:%d: failed: %s\n", __FILE__, __LINE__, #cond);        \
        }                                                                    \
    } while (0)

/* |a - b| <= tol; a NaN fails. */
#define CHECK_NEAR(a, b, tol)                                                \
    do {                                                                     \
        double check_a = (a), check_b = (b);                                 \
        checks_run++;                                                        \
        if (!(fabs(check_a - check_b) <= (tol))) {                           \
            checks_failed++;                                                 \
            printf("%s:%d: %s = %g, expected %g +- %g\n", __FILE__, __LINE__, #a, check_a, check_b, (double)(tol)); \
        }                                                                    \
    } while (0)

/* The larger of two errors, which fmax() would not be where one is a NaN. */
static inline double worse(double a, double b) {
    if (isnan(a) || isnan(b)) return INFINITY;
    return a > b ? a : b;
}

/* Prints the summary line; the test's exit status. */
static int check_done(const char *name) {
    printf("%s: %d checks, %d failed\n", name, checks_run, checks_failed);
    return checks_failed != 0;
}
