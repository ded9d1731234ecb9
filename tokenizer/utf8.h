/* utf8.h - reading UTF-8, and making a stream of bytes valid UTF-8. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define UTF8_INVALID 0xFFFFFFFFu

/* The code point at text[0..n), n >= 1. *len: how many bytes it takes. A byte
 * that does not begin a valid sequence (overlong, surrogate, cut short, above
 * U+10FFFF) gives UTF8_INVALID and a length of 1. */
uint32_t utf8_next(const char *text, size_t n, size_t *len);

/* Writes one code point (at most 4 bytes) and returns its length. */
size_t utf8_write(uint32_t code_point, char *out);

/* Tokens may end in the middle of a character. The stream holds back an
 * unfinished sequence until the rest arrives; what can't be valid becomes
 * U+FFFD. Zero-initialise it. */
struct utf8_stream {
    char held[4];
    size_t n_held;
};

/* Room that utf8_stream_push() may need for n bytes of input. */
#define UTF8_STREAM_ROOM(n) (3 * ((n) + 3))

/* Takes n bytes and writes the text that is now complete to out, which has
 * UTF8_STREAM_ROOM(n) bytes. Returns the length written. */
size_t utf8_stream_push(struct utf8_stream *stream, const char *bytes, size_t n, char *out);

/* The end of the text: an unfinished sequence becomes U+FFFD. `out` has
 * UTF8_STREAM_ROOM(0) bytes. Returns the length written. */
size_t utf8_stream_flush(struct utf8_stream *stream, char *out);
