"""The PyTorch reference against the public code of MoSA and Landmark Attention (golden/make_trained_modes.py)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from reference import modes
from reference.model import Layer, Rope

GOLDEN = safe_open(Path(__file__).parent / "golden" / "trained_modes.safetensors", "pt")
CASES = json.loads(GOLDEN.metadata()["cases"])


@pytest.mark.parametrize("i", range(len(CASES)), ids=[f"{mode}:{options}" for mode, options in CASES])
def test_reference_is_the_public_code(i):
    mode, options = CASES[i]
    options = {name: int(value) for name, value in (o.split("=") for o in options.split(","))}
    x, q, k, v, want = (GOLDEN.get_tensor(f"{i}.{name}") for name in ("x", "q", "k", "v", "out"))
    d = q.shape[-1]
    rope = Rope(10000.0 ** -(torch.arange(0, d, 2) / d), 1.0, interleaved=False)
    layer = Layer(x, q, k, v, rope, len(x))
    if mode == "landmark":
        layer.landmarks = torch.arange(len(x)) % options["block"] == options["block"] - 1
        got = modes.landmark(layer, options["block"], options["topk"], "token")
    else:
        layer.tensors = {"attn_mosa_router": GOLDEN.get_tensor(f"{i}.router")}
        first = bool(options["include_first"])
        got = modes.mosa(layer, options["k"], 0, first, "sequence", "trained")
    assert (got - want).abs().max() < 1e-5
