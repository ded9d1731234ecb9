/* evict_window.c - the newest entries stay, and with sink > 0 the first ones: StreamingLLM (arXiv
 * 2309.17453). */
#include "evict.h"

static void score(struct evict_layer *l, int head, int n, float *scores) {
    (void)l, (void)head;
    for (int i = 0; i < n; i++) scores[i] = (float)i; /* in order of position */
}

static const struct param window_params[] = {EVICT_OPTIONS(0), {0}};

const struct evict_policy evict_window = {
    .name = "window",
    .summary = "the newest entries, and the sink (StreamingLLM)",
    .params = window_params,
    .options_bytes = sizeof(struct evict_options),
    .oldest_first = true,
    .score = score,
};

static const struct param streaming_params[] = {EVICT_OPTIONS(1), {0}};

const struct evict_policy evict_streaming = {
    .name = "streaming",
    .summary = "window with re-rotation: text of any length at positions that the model was trained for",
    .params = streaming_params,
    .options_bytes = sizeof(struct evict_options),
    .oldest_first = true,
    .score = score,
};
