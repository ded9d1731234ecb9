/* blas.h - an external BLAS for prompts with F32, F16 and BF16 weights (make BLAS=1). */
#pragma once

#include "internal.h"

#define BLAS_ROWS 128 /* weight rows of one call: fixed, so that results don't depend on the threads */

#ifdef ATTN_BLAS
#define WIDEST_PANEL BLAS_ROWS

/* Once, before there are workers: they are the threads, BLAS shall start none. */
void blas_init(void);

/* Whether these products are for it: float weights, and enough activation rows. */
bool blas_takes(const struct product *products, int n_products, const struct acts *a);

/* A matmul_fn for up to BLAS_ROWS weight rows. */
void blas_matmul(const struct weight *w, int begin, int end, const struct acts *a, float *y, size_t y_stride,
                 bool add, void *scratch);
#else
#define WIDEST_PANEL PANEL
static inline void blas_init(void) {}
static inline bool blas_takes(const struct product *products, int n_products, const struct acts *a) {
    (void)products, (void)n_products, (void)a;
    return false;
}
#define blas_matmul NULL
#endif
