#include "tokenizer/chat.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#define TEMPLATE_KEY "tokenizer.chat_template"

/* What stands around the messages; {bos} and {eos} are the file's tokens. */
struct layout {
    const char *name;
    const char *system_open, *system_close;
    const char *user_open, *user_close;
    const char *answer_open;  /* asks for the answer */
    const char *answer_close; /* between the answer and the next turn */
    bool system_in_user;      /* the system message comes behind user_open */
    bool trim_system, trim_user;
};

static const struct layout chatml = {
    "chatml", "<|im_start|>system\n", "<|im_end|>\n", "<|im_start|>user\n", "<|im_end|>\n",
    "<|im_start|>assistant\n", "<|im_end|>\n", false, false, false,
};

static const struct layout llama3 = {
    "llama3", "<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>",
    "<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>",
    "<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>", false, true, true,
};

/* Llama 3.1 and 3.2 always have a system message; the date is the template's own where it is given none. */
static const struct layout llama31 = {
    "llama3.1",
    "<|start_header_id|>system<|end_header_id|>\n\n"
    "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n",
    "<|eot_id|>", "<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>",
    "<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>", false, true, true,
};

static const struct layout llama2 = {
    "llama2", "<<SYS>>\n", "\n<</SYS>>\n\n", "[INST] ", " [/INST]", "", " {eos}{bos}", true, false, true,
};

/* Mistral 7B v0.1 and v0.2, as first published. */
static const struct layout mistral = {
    "mistral", "", "\n\n", "[INST] ", " [/INST]", "", "{eos}", true, false, false,
};

static const struct layout mistral_v01 = {
    "mistral-v0.1", "", "\n\n", "[INST] ", " [/INST]", "", "{eos} ", true, false, false,
};

/* Mistral's numbered formats differ in their spaces; the model writes the one before its answer. */
static const struct layout mistral_v1 = {
    "mistral-v1", "", "\n\n", " [INST] ", " [/INST]", "", "{eos}", true, false, false,
};

static const struct layout mistral_v3 = {
    "mistral-v3", "", "\n\n", "[INST] ", "[/INST]", "", "{eos}", true, false, false,
};

static const struct layout mistral_tekken = {
    "mistral-v3-tekken", "", "\n\n", "[INST]", "[/INST]", "", "{eos}", true, false, false,
};

static const struct layout zephyr = {
    "zephyr", "<|system|>\n", "{eos}\n", "<|user|>\n", "{eos}\n",
    "<|assistant|>\n", "{eos}\n", false, false, false,
};

static const struct layout phi3 = {
    "phi3", "<|system|>\n", "<|end|>\n", "<|user|>\n", "<|end|>\n",
    "<|assistant|>\n", "<|end|>\n", false, false, false,
};

static const struct layout gemma = {
    "gemma", "", "\n\n", "<start_of_turn>user\n", "<end_of_turn>\n",
    "<start_of_turn>model\n", "<end_of_turn>\n", true, false, true,
};

struct chat_format {
    const struct layout *layout;
    char *default_system; /* NULL: none */
    char *bos, *eos;      /* texts of these tokens; "" where there are none */
};

/* Is `part` somewhere in the text? Returns where it ends, or NULL. */
static const char *find(const char *text, size_t len, const char *part) {
    size_t part_len = strlen(part);
    for (size_t i = 0; i + part_len <= len; i++) {
        if (memcmp(text + i, part, part_len) == 0) {
            return text + i + part_len;
        }
    }
    return NULL;
}

static bool contains(struct gguf_string text, const char *part) {
    return find(text.data, text.len, part) != NULL;
}

static const struct layout *recognise_inst(struct gguf_string text) {
    if (contains(text, "[SYSTEM_PROMPT]")) {
        return NULL;
    }
    if (contains(text, "[AVAILABLE_TOOLS]") || contains(text, " [INST] \" + system_message") ||
        contains(text, " [INST] ' + system_message")) {
        if (contains(text, " [INST]")) {
            return &mistral_v1;
        }
        return contains(text, "\"[INST]\"") ? &mistral_tekken : &mistral_v3;
    }
    if (contains(text, "<<SYS>>")) {
        return &llama2;
    }
    return contains(text, "eos_token + ' '") ? &mistral_v01 : &mistral;
}

/* The layout that a template writes, or NULL. */
static const struct layout *recognise(struct gguf_string text) {
    if (contains(text, "<|im_start|>")) {
        return &chatml;
    }
    if (contains(text, "<|start_header_id|>")) {
        return contains(text, "Cutting Knowledge Date") ? &llama31 : &llama3;
    }
    if (contains(text, "<start_of_turn>")) {
        return &gemma;
    }
    if (contains(text, "[INST]")) {
        return recognise_inst(text);
    }
    if (contains(text, "<|user|>") && contains(text, "<|end|>")) {
        return &phi3;
    }
    return contains(text, "<|user|>") && contains(text, "message['content'] + eos_token") ? &zephyr : NULL;
}

/* A copy of text[0..len), a piece of a Jinja string, without its escapes. */
static char *unescape(const char *text, size_t len) {
    char *out = malloc(len + 1);
    size_t n = 0;
    for (size_t i = 0; out && i < len; i++) {
        if (text[i] == '\\' && i + 1 < len) {
            i++;
            out[n++] = text[i] == 'n' ? '\n' : text[i] == 't' ? '\t' : text[i];
        } else {
            out[n++] = text[i];
        }
    }
    if (out) {
        out[n] = '\0';
    }
    return out;
}

/* A ChatML template that has a system message of its own spells it out in one
 * string: '<|im_start|>system\nYou are ...<|im_end|>\n'. Other strings that
 * begin so end right after the newline. -1 where memory runs out. */
static int find_default_system(struct gguf_string text, char **out) {
    const char *end = text.data + text.len;
    const char *at = text.data;
    while ((at = find(at, (size_t)(end - at), "<|im_start|>system"))) {
        size_t newline = end - at >= 1 && at[0] == '\n' ? 1 : end - at >= 2 && !memcmp(at, "\\n", 2) ? 2 : 0;
        const char *message = at + newline;
        const char *stop = find(message, (size_t)(end - message), "<|im_end|>");
        if (newline && stop && *message != '\'' && *message != '"' && *message != '{') {
            *out = unescape(message, (size_t)(stop - message) - strlen("<|im_end|>"));
            return *out ? 0 : -1;
        }
    }
    return 0;
}

/* The text of the token whose id this key holds, "" if there is none. NULL where memory runs out. */
static char *token_text(const struct gguf *file, const char *key) {
    struct gguf_array tokens;
    struct gguf_string text = {"", 0};
    int64_t id;
    if (gguf_get_int(file, key, &id) && gguf_get_array(file, "tokenizer.ggml.tokens", &tokens) &&
        tokens.type == GGUF_STRING && id >= 0 && (uint64_t)id < tokens.n) {
        const uint8_t *cursor = tokens.data;
        for (int64_t i = 0; i <= id; i++) {
            text = gguf_array_next(&tokens, &cursor);
        }
    }
    char *copy = malloc(text.len + 1);
    if (copy) {
        memcpy(copy, text.data, text.len);
        copy[text.len] = '\0';
    }
    return copy;
}

struct chat_format *chat_detect(const struct gguf *file, struct error *err) {
    struct gguf_string text;
    if (!gguf_get_string(file, TEMPLATE_KEY, &text)) {
        fail(err, "%s: %s is missing, so there is no format for a chat: use --raw", gguf_path(file),
             TEMPLATE_KEY);
        return NULL;
    }
    const struct layout *layout = recognise(text);
    if (!layout) {
        fail(err, "%s: %s has a format that isn't known: use --raw, and write its markers into the prompt",
             gguf_path(file), TEMPLATE_KEY);
        return NULL;
    }
    struct chat_format *format = calloc(1, sizeof *format);
    if (format) {
        format->layout = layout;
        format->bos = token_text(file, "tokenizer.ggml.bos_token_id");
        format->eos = token_text(file, "tokenizer.ggml.eos_token_id");
    }
    int status = layout == &chatml && format ? find_default_system(text, &format->default_system) : 0;
    if (format && layout == &llama31) {
        status = (format->default_system = calloc(1, 1)) ? 0 : -1;
    }
    if (!format || !format->bos || !format->eos || status) {
        fail(err, "out of memory for the chat format");
        chat_format_free(format);
        return NULL;
    }
    return format;
}

void chat_format_free(struct chat_format *format) {
    if (format) {
        free(format->default_system);
        free(format->bos);
        free(format->eos);
        free(format);
    }
}

const char *chat_format_name(const struct chat_format *format) {
    return format->layout->name;
}

/* A growing text; `data` is NULL once memory ran out. */
struct text {
    char *data;
    size_t len, cap;
};

static void append(struct text *text, const char *bytes, size_t n) {
    if (text->data && text->len + n >= text->cap) {
        text->cap = 2 * (text->len + n + 1);
        char *data = realloc(text->data, text->cap);
        if (!data) {
            free(text->data);
        }
        text->data = data;
    }
    if (text->data) {
        memcpy(text->data + text->len, bytes, n);
        text->len += n;
        text->data[text->len] = '\0';
    }
}

static void append_markers(struct text *text, const char *markers, const struct chat_format *format) {
    while (*markers) {
        if (strncmp(markers, "{bos}", 5) == 0 || strncmp(markers, "{eos}", 5) == 0) {
            const char *token = markers[1] == 'b' ? format->bos : format->eos;
            append(text, token, strlen(token));
            markers += 5;
        } else {
            append(text, markers++, 1);
        }
    }
}

static void append_message(struct text *text, const char *message, bool trim) {
    size_t len = strlen(message);
    while (trim && len > 0 && isspace((unsigned char)*message)) {
        message++;
        len--;
    }
    while (trim && len > 0 && isspace((unsigned char)message[len - 1])) {
        len--;
    }
    append(text, message, len);
}

char *chat_render_turn(const struct chat_format *format, const char *system, const char *user, bool first,
                       struct error *err) {
    const struct layout *layout = format->layout;
    struct text text = {calloc(1, 1), 0, 1};
    system = system ? system : format->default_system;
    if (!first) {
        append_markers(&text, layout->answer_close, format);
    }
    if (layout->system_in_user) {
        append_markers(&text, layout->user_open, format);
    }
    if (first && system) {
        append_markers(&text, layout->system_open, format);
        append_message(&text, system, layout->trim_system);
        append_markers(&text, layout->system_close, format);
    }
    if (!layout->system_in_user) {
        append_markers(&text, layout->user_open, format);
    }
    append_message(&text, user, layout->trim_user);
    append_markers(&text, layout->user_close, format);
    append_markers(&text, layout->answer_open, format);
    if (!text.data) {
        fail(err, "out of memory for a turn of the chat");
    }
    return text.data;
}
