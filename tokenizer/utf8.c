#include "tokenizer/utf8.h"

#include <string.h>

#define REPLACEMENT 0xFFFDu

/* How many bytes a sequence has, from its first byte; 0: none starts so. */
static size_t sequence_length(unsigned char first) {
    if (first < 0x80) {
        return 1;
    }
    if (first < 0xC2 || first > 0xF4) {
        return 0;
    }
    return first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
}

/* May `byte` be the second of a sequence that begins with `first`? This is
 * where overlong forms, surrogates and numbers above U+10FFFF show. */
static int second_byte_fits(unsigned char first, unsigned char byte) {
    switch (first) {
        case 0xE0: return byte >= 0xA0 && byte <= 0xBF;
        case 0xED: return byte >= 0x80 && byte <= 0x9F;
        case 0xF0: return byte >= 0x90 && byte <= 0xBF;
        case 0xF4: return byte >= 0x80 && byte <= 0x8F;
        default: return byte >= 0x80 && byte <= 0xBF;
    }
}

/* How many of the n bytes fit the sequence that the first one begins, at most
 * its length; 0 if none begins. */
static size_t valid_prefix(const unsigned char *bytes, size_t n) {
    size_t length = sequence_length(bytes[0]);
    if (length < 2 || n < 2) {
        return length > 0;
    }
    if (!second_byte_fits(bytes[0], bytes[1])) {
        return 1;
    }
    size_t i = 2;
    while (i < length && i < n && (bytes[i] & 0xC0) == 0x80) {
        i++;
    }
    return i;
}

uint32_t utf8_next(const char *text, size_t n, size_t *len) {
    const unsigned char *bytes = (const unsigned char *)text;
    size_t length = sequence_length(bytes[0]);
    if (length == 0 || valid_prefix(bytes, n) < length) {
        *len = 1;
        return UTF8_INVALID;
    }
    *len = length;
    switch (length) {
        case 1: return bytes[0];
        case 2: return (bytes[0] & 0x1Fu) << 6 | (bytes[1] & 0x3Fu);
        case 3: return (bytes[0] & 0x0Fu) << 12 | (bytes[1] & 0x3Fu) << 6 | (bytes[2] & 0x3Fu);
        default:
            return (bytes[0] & 0x07u) << 18 | (bytes[1] & 0x3Fu) << 12 | (bytes[2] & 0x3Fu) << 6 |
                   (bytes[3] & 0x3Fu);
    }
}

size_t utf8_write(uint32_t code_point, char *out) {
    if (code_point < 0x80) {
        out[0] = (char)code_point;
        return 1;
    }
    if (code_point < 0x800) {
        out[0] = (char)(0xC0 | code_point >> 6);
        out[1] = (char)(0x80 | (code_point & 0x3F));
        return 2;
    }
    if (code_point < 0x10000) {
        out[0] = (char)(0xE0 | code_point >> 12);
        out[1] = (char)(0x80 | (code_point >> 6 & 0x3F));
        out[2] = (char)(0x80 | (code_point & 0x3F));
        return 3;
    }
    out[0] = (char)(0xF0 | code_point >> 18);
    out[1] = (char)(0x80 | (code_point >> 12 & 0x3F));
    out[2] = (char)(0x80 | (code_point >> 6 & 0x3F));
    out[3] = (char)(0x80 | (code_point & 0x3F));
    return 4;
}

/* Writes what of bytes[0..n) is decided. *used: how many bytes that took; the
 * rest, at most 3 bytes, is the beginning of a sequence. One U+FFFD stands for
 * a longest run of bytes that begins a valid sequence, as Unicode recommends. */
static size_t write_decided(const unsigned char *bytes, size_t n, char *out, size_t *used) {
    size_t i = 0, written = 0;
    while (i < n) {
        size_t length = sequence_length(bytes[i]);
        size_t fits = valid_prefix(bytes + i, n - i);
        if (length > 0 && fits == length) {
            memcpy(out + written, bytes + i, length);
            written += length;
            i += length;
        } else if (length > 0 && fits == n - i) {
            break; /* the rest may still come */
        } else {
            written += utf8_write(REPLACEMENT, out + written);
            i += fits > 0 ? fits : 1;
        }
    }
    *used = i;
    return written;
}

size_t utf8_stream_push(struct utf8_stream *stream, const char *bytes, size_t n, char *out) {
    size_t taken = 0, written = 0, used;
    /* Byte by byte until what was held back is decided. */
    while (stream->n_held > 0 && taken < n) {
        stream->held[stream->n_held++] = bytes[taken++];
        written += write_decided((unsigned char *)stream->held, stream->n_held, out + written, &used);
        stream->n_held -= used;
        memmove(stream->held, stream->held + used, stream->n_held);
    }
    written += write_decided((const unsigned char *)bytes + taken, n - taken, out + written, &used);
    taken += used;
    if (taken < n) {
        stream->n_held = n - taken;
        memcpy(stream->held, bytes + taken, stream->n_held);
    }
    return written;
}

size_t utf8_stream_flush(struct utf8_stream *stream, char *out) {
    if (stream->n_held == 0) {
        return 0;
    }
    stream->n_held = 0;
    return utf8_write(REPLACEMENT, out);
}
