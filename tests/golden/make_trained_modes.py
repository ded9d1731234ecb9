"""Writes trained_modes.safetensors: what the public code of MoSA and Landmark Attention computes, for test_golden.py.

    git clone https://github.com/piotrpiekos/MoSA && git clone https://github.com/epfml/landmark-attention
    python tests/golden/make_trained_modes.py MoSA landmark-attention

The attention layer of each gets random weights and hidden states. Tensors, per case: x [T, C] hidden states, q
[T, H, d], k and v [T, G, d] before RoPE, out [T, H, d] the heads' outputs before the output matrix; MoSA's
router [H, C]. T, H, d and the case's options are in the metadata.
"""

import importlib.util
import json
import sys
import types
from pathlib import Path

import torch
from safetensors.torch import save_file

OUT = Path(__file__).resolve().parent / "trained_modes.safetensors"
T, H, D, C = 60, 4, 8, 32


class Anything(types.ModuleType):
    """A module of which everything can be imported: for names that a newer transformers no longer has."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (torch.nn.Module,), {}) if name[0].isupper() else Anything(name)

    def __call__(self, *args, **kwargs):
        return lambda decorated: decorated


def load(path, name, missing=()):
    real = {module: sys.modules.get(module) for module in missing}
    sys.modules.update({module: Anything(module) for module in missing})
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, its in real.items():
        sys.modules.pop(name) if its is None else sys.modules.update({name: its})
    return module


def landmark(folder, block, topk):
    """llama_mem.py's attention, fed one block after the other as its generation does."""
    transformers = ["activations", "modeling_outputs", "modeling_utils", "utils", "models", "models.llama"]
    missing = ["transformers", *(f"transformers.{m}" for m in transformers)]
    public = load(
        folder / "llama_legacy" / "llama_mem.py",
        "llama_mem",
        [*missing, "transformers.models.llama.configuration_llama"],
    )
    config = types.SimpleNamespace(hidden_size=H * D, num_attention_heads=H, max_position_embeddings=256)
    torch.manual_seed(block + topk)
    attention = public.LlamaAttention(config)
    attention.set_mem_cache_args(block - 1, topk, None)
    for p in (attention.q_proj, attention.k_proj, attention.v_proj):
        torch.nn.init.normal_(p.weight, std=0.4)
    torch.nn.init.eye_(attention.o_proj.weight)
    x, past, out = torch.randn(1, T, H * D), None, []
    for begin in range(0, T, block):
        part = x[:, begin : begin + block]
        n, seen = part.shape[1], begin + part.shape[1]
        mark = (torch.arange(n) == block - 1).expand(1, 1, n, n)
        visible = torch.ones(n, n, dtype=torch.bool).tril() & ~mark  # a landmark of its own block is not seen
        mask = torch.zeros(1, 1, n, seen)
        mask[..., begin:].masked_fill_(~visible, torch.finfo(torch.float32).min)
        its, _, past = attention(
            part,
            attention_mask=mask,
            position_ids=torch.arange(begin, seen)[None],
            past_key_value=past,
            use_cache=True,
            is_mem=mark & visible,
            last_section_mask=visible,
        )
        out.append(its)
    heads = [p(x)[0].view(T, H, D) for p in (attention.q_proj, attention.k_proj, attention.v_proj)]
    return dict(zip("qkv", heads), x=x[0], out=torch.cat(out, 1)[0].view(T, H, D))


def mosa(folder, k, include_first):
    """PureMoSA with its heads' outputs left apart."""
    sys.path.insert(0, str(folder))
    from mosa.MoSA import PureMoSA

    torch.manual_seed(k)
    public = PureMoSA(H, T // k, C, D, include_first=include_first, rotate_fraction=1.0)
    x = torch.randn(1, T, C)
    found, at, n = public.get_topk(x)
    assert n == k
    q, key, v = public.QKV(x, at).chunk(3, dim=-1)
    heads = public.inner_attend(q, key, v, at) * found[..., None]
    out = torch.zeros(T, H, D)
    for h in range(H):
        out[at[0, h], h] = heads[0, h]
    q, key, v = torch.einsum("btc,hcd->bthd", x, public.QKV.W).chunk(3, dim=-1)
    return {"x": x[0], "q": q[0], "k": key[0], "v": v[0], "out": out, "router": public.r[0].weight}


def main(mosa_folder, landmark_folder):
    cases = {}
    for block, topk in ((10, 2), (12, 1), (7, 3)):
        cases["landmark", f"block={block},topk={topk}"] = landmark(landmark_folder, block, topk)
    for k, first in ((12, 0), (12, 1), (20, 0)):
        cases["mosa", f"k={k},include_first={first}"] = mosa(mosa_folder, k, first)
    tensors, names = {}, []
    for (mode, options), its in cases.items():
        tensors |= {f"{len(names)}.{name}": t.detach().contiguous() for name, t in its.items()}
        names.append([mode, options])
    save_file(tensors, OUT, metadata={"cases": json.dumps(names)})


if __name__ == "__main__":
    with torch.no_grad():
        main(*map(Path, sys.argv[1:]))
