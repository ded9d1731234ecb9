"""The weights of a GGUF file in `transformers`, float32: an independent check of the dense model."""

import torch
import transformers

CLASSES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
}

NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def half_split(w, n_head):
    """Rows of q or k from GGUF's llama order (RoPE pairs adjacent) to transformers' (half a head apart)."""
    return w.reshape(n_head, -1, 2, *w.shape[1:]).transpose(1, 2).reshape(w.shape)


def rope_parameters(m):
    parameters = {"rope_type": "default", "rope_theta": m.key("rope.freq_base", 10000.0)}
    kind = m.key("rope.scaling.type")
    if kind in ("linear", "yarn"):
        parameters.update(rope_type=kind, factor=m.key("rope.scaling.factor"))
    if kind == "yarn":
        parameters["original_max_position_embeddings"] = m.key("rope.scaling.original_context_length")
    return parameters


def convert(m):
    """A reference.model.Model as a transformers model in float32."""
    config_class, model_class = CLASSES[m.arch]
    state = {
        "model.embed_tokens.weight": m.w["token_embd.weight"],
        "model.norm.weight": m.w["output_norm.weight"],
    }
    state["lm_head.weight"] = m.w.get("output.weight", m.w["token_embd.weight"])
    for name, w in m.w.items():
        if not name.startswith("blk."):
            continue
        _, i, what, kind = name.split(".")
        if m.arch == "llama" and what in ("attn_q", "attn_k"):
            w = half_split(w, m.n_head if what == "attn_q" else m.n_head_kv)
        if what in NAMES:
            state[f"model.layers.{i}.{NAMES[what]}.{kind}"] = w
    config = config_class(
        vocab_size=m.n_vocab,
        hidden_size=m.n_embd,
        intermediate_size=m.key("feed_forward_length"),
        num_hidden_layers=m.n_layer,
        num_attention_heads=m.n_head,
        num_key_value_heads=m.n_head_kv,
        head_dim=m.head_dim,
        max_position_embeddings=m.key("context_length"),
        rms_norm_eps=m.eps,
        rope_parameters=rope_parameters(m),
        tie_word_embeddings="output.weight" not in m.w,
    )
    with torch.device("meta"):
        model = model_class(config)
    model.load_state_dict({k: v.float() for k, v in state.items()}, strict=True, assign=True)
    # RoPE's buffers are not in the state: make them again, outside the meta device
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model.eval()


@torch.no_grad()
def logits(hf_model, ids):
    return hf_model(torch.tensor([ids])).logits[0]
