/* cpu.c - which kernels this machine can run. */
#include <string.h>

#include "blas.h"

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#endif
#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__linux__) && defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

static bool any_cpu(void) { return true; }

#if defined(__x86_64__) || defined(__i386__)
/* These ask whether the operating system saves the registers, too. */
static bool has_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

static bool has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

static bool has_avx512vnni(void) { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }

/* The tile registers are large, so Linux wants to be asked before a process uses
 * them, and virtual machines may refuse. */
static bool may_use_tiles(void) {
#if defined(__linux__) && defined(__x86_64__)
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 }; /* ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA */
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
    return false;
#endif
}

static bool has_amx(void) {
    const unsigned amx_bf16 = 1u << 22, amx_tile = 1u << 24, avx512_bf16 = 1u << 5;
    unsigned a, b, c, d;
    return has_avx512vnni() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && d & amx_tile && d & amx_bf16 &&
           __get_cpuid_count(7, 1, &a, &b, &c, &d) && a & avx512_bf16 && may_use_tiles();
}
#endif

#if defined(__aarch64__)
static bool has_dot_products(void) {
#ifdef __linux__
    return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#else
    return false;
#endif
}
#endif

/* Slowest first. */
static const struct {
    const struct kernels *table;
    bool (*runs)(void);
} candidates[] = {
    {&kernels_c, any_cpu},
#if defined(__x86_64__) || defined(__i386__)
    {&kernels_avx2, has_avx2},
    {&kernels_avx512, has_avx512},
    {&kernels_avx512vnni, has_avx512vnni},
    {&kernels_amx, has_amx},
#endif
#if defined(__aarch64__)
    {&kernels_neon, any_cpu},
    {&kernels_neondot, has_dot_products},
#endif
};

#define N_CANDIDATES ((int)(sizeof candidates / sizeof *candidates))

const struct kernels *kernels_select(const char *isa, struct error *err) {
    blas_init();
    for (int i = N_CANDIDATES - 1; i >= 0; i--) {
        if (isa && strcmp(candidates[i].table->isa, isa)) continue;
        if (candidates[i].runs()) return candidates[i].table;
    }
    static const char *const names[] = {"c", "avx2", "avx512", "avx512vnni", "amx", "neon", "neondot"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(names[i], isa)) continue;
        fail_usage(err, "instruction set %s: this CPU or system can't run it", isa);
        return NULL;
    }
    fail_usage(err, "instruction set %s: unknown; use c, avx2, avx512, avx512vnni, amx, neon or neondot",
               isa);
    return NULL;
}

const char *kernels_isa(const struct kernels *k) { return k->isa; }
