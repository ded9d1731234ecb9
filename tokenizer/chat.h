/* chat.h - turns of a conversation as the text that the checkpoint was trained on.
 *
 * A checkpoint brings a Jinja template. We don't run it: we recognise the
 * well-known formats from its text and render them turn by turn, so that the
 * KV cache of earlier turns is kept. The pieces of a conversation, with the
 * model's answers between them, add up to what the template renders with
 * add_generation_prompt. */
#pragma once

#include <stdbool.h>

#include "error.h"
#include "gguf.h"

struct chat_format;

/* Recognises the file's tokenizer.chat_template. NULL if it has none or an
 * unknown one. Free with chat_format_free(). */
struct chat_format *chat_detect(const struct gguf *file, struct error *err);
void chat_format_free(struct chat_format *format);

/* "chatml", "llama3", ... */
const char *chat_format_name(const struct chat_format *format);

/* The text to append before the model answers `user`. First turn: begins with
 * the system message (NULL: the template's own, if it has one). Later turns
 * (`system` is ignored) begin with the marker that ends the previous answer,
 * so don't feed the model the end-of-generation token that it produced.
 * BOS is left out at the start: encode the first turn with add_bos, and all of
 * them with parse_special. Free the result with free(); NULL where memory
 * runs out. */
char *chat_render_turn(const struct chat_format *format, const char *system, const char *user, bool first,
                       struct error *err);
