/* inline.h - what keeps small arrays of vectors in registers: functions that are part of their callers, and loops
 * that are gone before the compiler looks for arrays. */
#pragma once

#define INLINE static inline __attribute__((always_inline))

/* Functions in which many of those meet are kept apart: gcc's time grows faster than the size of one. */
#define NOINLINE static __attribute__((noinline))

/* Of a loop of at most 8 turns. clang leaves loops whose bounds aren't constant as they are. */
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#define NO_UNROLL _Pragma("clang loop unroll(disable)")
#else
#define UNROLL _Pragma("GCC unroll 8")
#define NO_UNROLL _Pragma("GCC unroll 1")
#endif
