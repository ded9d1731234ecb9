/* fuzz.h - what the fuzzers share: a seeded generator and damage to a buffer.
 *
 * The same seed gives the same damage on every machine. */
#pragma once

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* xorshift64*; the state must not be 0. */
static inline uint64_t fuzz_random(uint64_t *state) {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * UINT64_C(0x2545f4914f6cdd1d);
}

/* A number below n. */
static inline size_t fuzz_below(uint64_t *state, size_t n) {
    return (size_t)(fuzz_random(state) >> 11) % n;
}

/* Numbers that are apt to break arithmetic. */
static inline uint64_t fuzz_number(uint64_t *state) {
    static const uint64_t edges[] = {0,          1,          2,          7,          0x7f,      0xff,
                                     0x7fffffff, 0x80000000, 0xffffffff, 0x100000000, INT64_MAX, UINT64_MAX};
    uint64_t random = fuzz_random(state);
    switch (fuzz_below(state, 3)) {
    case 0:
        return edges[random % (sizeof edges / sizeof edges[0])];
    case 1:
        return random >> (random & 63);
    default:
        return UINT64_MAX - (random & 0xff);
    }
}

/* One piece of damage to data[*len], mostly among its first `front` bytes. */
static inline void fuzz_damage_once(uint8_t *data, size_t *len, size_t front, uint64_t *state) {
    size_t reach = front < *len && fuzz_below(state, 8) ? front : *len;
    size_t at = fuzz_below(state, reach);
    size_t left = *len - at;
    uint64_t number = fuzz_number(state);
    size_t from, n;
    switch (fuzz_below(state, 6)) {
    case 0: /* flip a bit */
        data[at] ^= (uint8_t)(1u << fuzz_below(state, 8));
        break;
    case 1: /* overwrite a u32 or a u64 */
        memcpy(data + at, &number, left < 8 ? left : fuzz_below(state, 2) ? 4 : 8);
        break;
    case 2: /* add to a byte: lengths that are slightly wrong */
        data[at] = (uint8_t)(data[at] + fuzz_below(state, 5) - 2);
        break;
    case 3: /* copy a piece from elsewhere */
        from = fuzz_below(state, *len);
        n = fuzz_below(state, 64);
        n = n < left ? n : left;
        n = n < *len - from ? n : *len - from;
        memmove(data + at, data + from, n);
        break;
    case 4: /* lose a piece in the middle */
        n = 1 + fuzz_below(state, left < 32 ? left : 32);
        memmove(data + at, data + at + n, left - n);
        *len -= n;
        break;
    default: /* lose the end */
        *len = fuzz_below(state, 4) ? *len - fuzz_below(state, *len < 64 ? *len : 64) : at + 1;
        break;
    }
    if (*len == 0) {
        *len = 1;
    }
}

/* Damages data[*len] in one to four places; it never grows nor becomes empty. */
static inline void fuzz_damage(uint8_t *data, size_t *len, size_t front, uint64_t seed) {
    uint64_t state = seed * UINT64_C(0x9e3779b97f4a7c15) | 1;
    for (size_t i = 1 + fuzz_below(&state, 4); i > 0; i--) {
        fuzz_damage_once(data, len, front, &state);
    }
}

/* A whole file in memory; exits where there is none. */
static inline uint8_t *fuzz_read(const char *path, size_t *len) {
    FILE *f = fopen(path, "rb");
    long size = f && fseek(f, 0, SEEK_END) == 0 ? ftell(f) : -1;
    uint8_t *data = size > 0 ? malloc((size_t)size) : NULL;
    if (!data || fseek(f, 0, SEEK_SET) || fread(data, 1, (size_t)size, f) != (size_t)size) {
        fprintf(stderr, "%s: can't read it, or it is empty\n", path);
        exit(2);
    }
    fclose(f);
    *len = (size_t)size;
    return data;
}

static inline void fuzz_write(const char *path, const uint8_t *data, size_t len) {
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, len, f) != len || fclose(f)) {
        perror(path);
        exit(2);
    }
}
