/* model.h - a decoder-only transformer: what a checkpoint holds.
 *
 * `struct model` is immutable once loaded and may be shared; everything that
 * changes while text is processed is in `struct session` (session.h). Read
 * model.c next: its forward pass is the paper's. */
#pragma once

#include "gguf.h"
#include "kernels/kernels.h"

#define MAX_NAME 64

struct config {
    char arch[MAX_NAME];   /* general.architecture: "llama", "qwen2", "qwen3" */
    int n_layer, n_embd, n_ff, n_vocab;
    int n_head, n_head_kv, head_dim;
    int n_ctx_train;       /* context length it was trained for */
    float norm_eps;
    struct rope rope;
};

struct layer {
    struct weight attn_norm;            /* [n_embd] */
    struct weight wq, bq;               /* [H*d, n_embd], [H*d] */
    struct weight wk, bk;               /* [G*d, n_embd], [G*d] */
    struct weight wv, bv;               /* [G*d, n_embd], [G*d] */
    struct weight q_norm, k_norm;       /* [d], or absent */
    struct weight wo;                   /* [n_embd, H*d] */
    struct weight ffn_norm;             /* [n_embd] */
    struct weight w_gate, w_up;         /* [n_ff, n_embd] */
    struct weight w_down;               /* [n_embd, n_ff] */
};

struct model {
    struct gguf *file;
    struct gguf *adapter;               /* --adapter, or NULL */
    const struct kernels *kernels;
    struct config config;
    struct weight token_embd;           /* [n_vocab, n_embd] */
    struct layer *layers;               /* [n_layer] */
    struct weight output_norm;          /* [n_embd] */
    struct weight output;               /* [n_vocab, n_embd]; token_embd where tied */
    bool exact;                         /* no quantised weights: float32 arithmetic throughout */
    size_t weights_bytes;               /* tensors in the mapping plus any copies made */
};

/* --rope-*: what is not given (-1, 0) stays as the file says. */
struct rope_options {
    int scaling;      /* enum rope_scaling, or -1 */
    float scale;      /* context is stretched by this factor, or 0 */
    float base;       /* or 0 */
};

struct model *model_load(const char *path, const char *adapter_path, const struct kernels *kernels,
                         const struct rope_options *rope, struct error *err);
void model_free(struct model *model);
