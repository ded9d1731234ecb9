"""config.json of a Hugging Face checkpoint: sizes and RoPE of a model, as GGUF keys."""

import math

import numpy as np
from gguf import RopeScalingType

from convert.architecture import ARCHITECTURES, Dimensions
from convert.checkpoint import read_json
from convert.report import ExportError, note


class Config:
    """`dimensions` of the model, its keys, and `rope_factors` that divide RoPE's frequencies, or None."""

    def __init__(self, folder):
        self.path = folder / "config.json"
        self.values = read_json(self.path)
        self._check_kind()
        self.dimensions = self._read_dimensions()
        self.context_length = self.count("max_position_embeddings")
        self.norm_eps = self.number("rms_norm_eps")
        self.rope = self._read_rope()
        self.rope_factors = self._llama3_factors() if self.rope_type == "llama3" else None
        self._note_windows()

    def get(self, key, default=None):
        """A value; keys set to null count as missing."""
        value = self.values.get(key)
        return default if value is None else value

    def _typed(self, values, key, types, default, form):
        value = values.get(key)
        value = default if value is None else value
        if value is None:
            raise ExportError(f"{self.path}: key '{key}' is missing")
        if not isinstance(value, types) or isinstance(value, bool) or not 0 < value < 1 << 31:
            raise ExportError(f"{self.path}: key '{key}' is {value!r}, not {form}")
        return value

    def count(self, key, default=None):
        return self._typed(self.values, key, int, default, "a whole number above 0")

    def number(self, key, default=None):
        return self._typed(self.values, key, (int, float), default, "a number above 0")

    def rope_number(self, key, default=None):
        return self._typed(self.rope, key, (int, float), default, "a number above 0")

    def _check_kind(self):
        names = self.get("architectures")
        if not isinstance(names, list) or len(names) != 1:
            raise ExportError(f"{self.path}: key 'architectures' is missing or doesn't name one")
        if names[0] not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise ExportError(f"{self.path}: architecture '{names[0]}' is not supported (known: {known})")
        if self.get("quantization_config"):
            raise ExportError(f"{self.path}: key 'quantization_config': quantised weights are not supported")
        act = self.get("hidden_act", "silu")
        if act != "silu":
            raise ExportError(f"{self.path}: key 'hidden_act' is {act!r}, but must be 'silu'")

    def _read_dimensions(self):
        n_embd, n_head = self.count("hidden_size"), self.count("num_attention_heads")
        d = Dimensions(
            arch=ARCHITECTURES[self.get("architectures")[0]],
            n_layer=self.count("num_hidden_layers"),
            n_embd=n_embd,
            n_ff=self.count("intermediate_size"),
            n_head=n_head,
            n_head_kv=self.count("num_key_value_heads", n_head),
            head_dim=self.count("head_dim", max(n_embd // n_head, 1)),
            n_vocab=self.count("vocab_size"),
            tied=self.get("tie_word_embeddings", False) is True,
        )
        if d.n_head % d.n_head_kv:
            raise ExportError(f"{self.path}: 'num_key_value_heads' {d.n_head_kv} does not divide {n_head}")
        if d.head_dim % 2:
            raise ExportError(f"{self.path}: key 'head_dim' is {d.head_dim}, but RoPE needs pairs")
        return d

    def _read_rope(self):
        """rope_parameters, or rope_theta and rope_scaling as they were called before transformers 5."""
        rope = self.get("rope_parameters", self.get("rope_scaling", {}))
        if not isinstance(rope, dict) or any(isinstance(v, dict) for v in rope.values()):
            raise ExportError(f"{self.path}: key 'rope_parameters' is not one set of numbers")
        self.rope_type = rope.get("rope_type", rope.get("type", "default"))
        known = ("default", "linear", "yarn", "llama3")
        if self.rope_type not in known:
            raise ExportError(
                f"{self.path}: RoPE scaling '{self.rope_type}' is not supported (known: {', '.join(known)})"
            )
        partial = rope.get("partial_rotary_factor", self.get("partial_rotary_factor", 1))
        if partial not in (1, None):
            raise ExportError(f"{self.path}: key 'partial_rotary_factor' is {partial}: only 1 is supported")
        if rope.get("truncate") is False:
            raise ExportError(f"{self.path}: RoPE scaling with 'truncate' false is not supported")
        return rope

    def _original_context(self):
        n = self.get("original_max_position_embeddings", self.rope.get("original_max_position_embeddings"))
        return self._typed({"original_max_position_embeddings": n}, "original_max_position_embeddings", int,
                           self.context_length, "a whole number above 0")

    def _base(self):
        return float(self.rope_number("rope_theta", self.number("rope_theta", 10000.0)))

    def _llama3_factors(self):
        """Llama 3.1: fast pairs stay, slow ones are divided by `factor`, a ramp in between."""
        factor, low, high = (self.rope_number(k) for k in ("factor", "low_freq_factor", "high_freq_factor"))
        if low == high:
            raise ExportError(f"{self.path}: keys 'low_freq_factor' and 'high_freq_factor' are the same")
        d = self.dimensions.head_dim
        turns = self._original_context() * self._base() ** -(np.arange(0, d, 2) / d) / (2 * math.pi)
        keep = ((turns - low) / (high - low)).clip(0, 1)
        return (1 / (keep + (1 - keep) / factor)).astype(np.float32)

    def _note_windows(self):
        used = self.get("use_sliding_window", True) and "sliding" in str(self.get("layer_types", "sliding"))
        window = self.get("sliding_window") if used else None
        if isinstance(window, int) and window < self.context_length:
            note(f"{self.path}: key 'sliding_window' is ignored: attention sees all of the context, "
                 f"not the last {window} tokens")

    def _add_yarn(self, writer, factor):
        writer.add_rope_scaling_orig_ctx_len(self._original_context())
        writer.add_rope_scaling_yarn_beta_fast(self.rope_number("beta_fast", 32))
        writer.add_rope_scaling_yarn_beta_slow(self.rope_number("beta_slow", 1))

        def magnitude(mscale=1):
            return 0.1 * mscale * math.log(factor) + 1 if factor > 1 else 1.0

        default = magnitude()
        if self.rope.get("mscale") and self.rope.get("mscale_all_dim"):
            default = magnitude(self.rope_number("mscale")) / magnitude(self.rope_number("mscale_all_dim"))
        wanted = self.rope_number("attention_factor", default)
        if wanted != magnitude():  # the key multiplies what readers compute from the factor
            writer.add_rope_scaling_attn_factors(wanted / magnitude())

    def add_keys(self, writer):
        d = self.dimensions
        writer.add_vocab_size(d.n_vocab)
        writer.add_context_length(self.context_length)
        writer.add_embedding_length(d.n_embd)
        writer.add_block_count(d.n_layer)
        writer.add_feed_forward_length(d.n_ff)
        writer.add_head_count(d.n_head)
        writer.add_head_count_kv(d.n_head_kv)
        writer.add_key_length(d.head_dim)
        writer.add_value_length(d.head_dim)
        writer.add_layer_norm_rms_eps(self.norm_eps)
        writer.add_rope_dimension_count(d.head_dim)
        writer.add_rope_freq_base(self._base())
        if self.rope_type in ("linear", "yarn"):
            factor = self.rope_number("factor")
            writer.add_rope_scaling_type(RopeScalingType(self.rope_type))
            writer.add_rope_scaling_factor(factor)
            if self.rope_type == "yarn":
                self._add_yarn(writer, factor)
