"""Which tensors the architectures that ./run knows have, under their names in GGUF and in transformers."""

from dataclasses import dataclass

# GGUF architecture of a transformers class
ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}

# A layer's tensors: GGUF's name after "blk.N.", transformers' after "model.layers.N."
LAYER_NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_q.bias": "self_attn.q_proj.bias",
    "attn_k.bias": "self_attn.k_proj.bias",
    "attn_v.bias": "self_attn.v_proj.bias",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}


@dataclass
class Dimensions:
    """Sizes of a model: what the shapes of its tensors follow from."""

    arch: str  # "llama", "qwen2", "qwen3"
    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_vocab: int
    tied: bool  # the output matrix is the embedding

    def layer_shapes(self, biases):
        """Shape (rows, columns) of each tensor of a layer, by the name after "blk.N."."""
        q, kv = self.n_head * self.head_dim, self.n_head_kv * self.head_dim
        shapes = {
            "attn_norm.weight": (self.n_embd,),
            "attn_q.weight": (q, self.n_embd),
            "attn_k.weight": (kv, self.n_embd),
            "attn_v.weight": (kv, self.n_embd),
        }
        if biases:
            shapes.update({"attn_q.bias": (q,), "attn_k.bias": (kv,), "attn_v.bias": (kv,)})
        if self.arch == "qwen3":
            shapes.update({"attn_q_norm.weight": (self.head_dim,), "attn_k_norm.weight": (self.head_dim,)})
        shapes.update({
            "attn_output.weight": (self.n_embd, q),
            "ffn_norm.weight": (self.n_embd,),
            "ffn_gate.weight": (self.n_ff, self.n_embd),
            "ffn_up.weight": (self.n_ff, self.n_embd),
            "ffn_down.weight": (self.n_embd, self.n_ff),
        })
        return shapes

    def matrices(self):
        """Shapes of the weights that an adapter may update, by name."""
        shapes = {
            f"blk.{i}.{name}": shape
            for i in range(self.n_layer)
            for name, shape in self.layer_shapes(biases=False).items()
            if len(shape) == 2
        }
        if not self.tied:
            shapes["output.weight"] = (self.n_vocab, self.n_embd)
        return shapes

    def is_rotated(self, name):
        """Whether RoPE turns what this tensor makes, and the architecture orders its rows for that."""
        return self.arch == "llama" and name.split(".")[-2] in ("attn_q", "attn_k")


def interleave(rows, head_dim):
    """RoPE's pairs from half a head apart (transformers) to side by side (GGUF's llama), in whole heads."""

    def interleaved(begin, end):
        x = rows(begin, end)
        return x.reshape(-1, 2, head_dim // 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)

    return interleaved
