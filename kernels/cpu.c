/* cpu.c - which kernels this machine can run. */
#include <string.h>

#include "internal.h"

static const struct kernels *const tables[] = {&kernels_c};

#define N_TABLES ((int)(sizeof tables / sizeof *tables))

const struct kernels *kernels_select(const char *isa, struct error *err) {
    if (!isa) return tables[N_TABLES - 1];
    for (int i = 0; i < N_TABLES; i++)
        if (!strcmp(tables[i]->isa, isa)) return tables[i];
    fail(err, "--isa %s: unknown; use c, avx2, avx512, avx512vnni, amx or neon", isa);
    return NULL;
}

const char *kernels_isa(const struct kernels *k) { return k->isa; }
