#include "state.h"

#include <string.h>

uint64_t checksum_add(uint64_t checksum, const void *data, size_t n) {
    const unsigned char *p = data;
    for (; n >= 8; n -= 8, p += 8) {
        uint64_t word;
        memcpy(&word, p, 8);
        checksum = (checksum ^ word) * 0x100000001b3u;
    }
    while (n--) checksum = (checksum ^ *p++) * 0x100000001b3u;
    return checksum;
}

void state_bytes(struct state_io *io, void *data, size_t n) {
    if (n == 0) return;
    if (io->saving) {
        if (!io->failed && fwrite(data, 1, n, io->file) != n) io->failed = true;
    } else if (!state_has(io, n, 1) || fread(data, 1, n, io->file) != n) {
        io->failed = true;
        memset(data, 0, n);
    } else {
        io->left -= n;
    }
    io->checksum = checksum_add(io->checksum, data, n);
}

void state_int(struct state_io *io, int *value, int min, int max) {
    state_bytes(io, value, sizeof *value);
    if (*value >= min && *value <= max) return;
    io->failed = true;
    *value = min;
}

bool state_has(struct state_io *io, size_t n, size_t size) {
    if (io->saving) return true;
    if (io->failed || (size && n > io->left / size)) io->failed = true;
    return !io->failed;
}
