/* quant_panel.h - weight rows unpacked for the GEMM of one instruction set. */
#pragma once

#include "internal.h"
#include "quants.h"

/* PANEL unpacked weight rows: what belongs together lies side by side. */
struct panel {
    uint8_t *u; /* [cols/4, PANEL, 4] */
    float *d;   /* [cols/group, PANEL] */
    float *m;   /* [cols/32, PANEL] */
};

/* Copies `cols` (up to MAX_BLOCK) columns of PANEL rows, MAX_BLOCK bytes apart, to
 * out[cols/4, PANEL, 4], adding `shift` to each byte. It may copy, and overwrite,
 * up to the next multiple of 64 columns. */
typedef void (*interleave_fn)(const uint8_t *rows, int cols, uint8_t shift, uint8_t *out);

static inline void interleave_plain(const uint8_t *rows, int cols, uint8_t shift, uint8_t *out) {
    for (int c = 0; c < cols; c += 4, out += 4 * PANEL)
        for (int r = 0; r < PANEL; r++)
            for (int i = 0; i < 4; i++) out[4 * r + i] = (uint8_t)(rows[r * MAX_BLOCK + c + i] + shift);
}

/* Unpacks rows begin .. end - 1; the last stands in for those missing from PANEL. A piece of every row is unpacked
 * before the next piece of the first, too short for the CPU to see where it goes on, so that is prefetched. */
static inline __attribute__((always_inline)) struct panel unpack_panel(const struct weight *w, int begin,
                                                                       int end, uint8_t shift,
                                                                       interleave_fn interleave,
                                                                       void *scratch) {
    const struct quant_format *f = &quant_formats[w->type];
    size_t cols = (size_t)w->cols, padded = (cols + 63) / 64 * 64;
    uint8_t *rows = scratch; /* [PANEL, MAX_BLOCK] */
    struct panel p = {.u = rows + PANEL * MAX_BLOCK};
    p.d = (float *)(p.u + padded * PANEL);
    p.m = p.d + cols / (size_t)f->group * PANEL;
    for (int c = 0; c < w->cols; c += MAX_BLOCK) {
        int n = w->cols - c < MAX_BLOCK ? w->cols - c : MAX_BLOCK;
        for (int r = 0; r < PANEL; r++) {
            const uint8_t *row = w->data + (size_t)(begin + r < end ? begin + r : end - 1) * w->row_bytes;
            const uint8_t *piece = row + c / f->block * f->bytes;
            int g = c / f->group * PANEL + r, piece_bytes = MAX_BLOCK / f->block * f->bytes;
            for (int i = 0; i < piece_bytes; i += 64) __builtin_prefetch(piece + piece_bytes + i);
            f->unpack(piece, n / f->block, rows + r * MAX_BLOCK, p.d + g, p.m + g, PANEL);
        }
        interleave(rows, n, shift, p.u + (size_t)c * PANEL);
    }
    return p;
}
