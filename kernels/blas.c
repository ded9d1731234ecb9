/* blas.c - float products of prompts by OpenBLAS, one single-threaded call for
 * every BLAS_ROWS weight rows. */
#include "blas.h"

#ifdef ATTN_BLAS
#include <cblas.h>

#define MIN_ROWS 32 /* of activations; our own kernels are as fast below */

void blas_init(void) { openblas_set_num_threads(1); }

bool blas_takes(const struct product *products, int n_products, const struct acts *a) {
    if (a->n < MIN_ROWS) return false;
    for (int p = 0; p < n_products; p++) {
        enum tensor_type type = products[p].w->type;
        if (type != TENSOR_F32 && type != TENSOR_F16 && type != TENSOR_BF16) return false;
    }
    return true;
}

/* In parts of PANEL rows where they must be converted, as many as scratch holds. */
void blas_matmul(const struct weight *w, int begin, int end, const struct acts *a, float *y, size_t y_stride,
                 bool add, void *scratch) {
    bool in_place = w->type == TENSOR_F32 && (uintptr_t)w->data % sizeof(float) == 0;
    int step = in_place ? BLAS_ROWS : PANEL;
    for (int r = begin; r < end; r += step) {
        int rows = end - r < step ? end - r : step;
        const float *weights = scratch;
        if (in_place) {
            weights = (const float *)(const void *)(w->data + (size_t)r * w->row_bytes);
        } else {
            for (int i = 0; i < rows; i++)
                weight_row(&kernels_c, w, r + i, (float *)scratch + (size_t)i * (size_t)w->cols);
        }
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, a->n, rows, w->cols, 1, a->f32, a->cols, weights,
                    w->cols, add ? 1 : 0, y + r, (int)y_stride);
    }
}
#endif
