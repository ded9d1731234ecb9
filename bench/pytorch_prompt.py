"""Prompt speed of `transformers` in bfloat16: pytorch_prompt.py MODEL N THREADS < token ids"""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import torch  # noqa: E402

from reference import hf  # noqa: E402
from reference.model import Model  # noqa: E402


@torch.no_grad()
def main():
    path, n, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(threads)
    model = hf.convert(Model(path, dtype=torch.float32)).to(torch.bfloat16)
    ids = torch.tensor([[int(i) for i in sys.stdin.read().split()[:n]]])
    best = 0.0
    for _ in range(4):
        start = time.perf_counter()
        model(ids)
        best = max(best, n / (time.perf_counter() - start))
    print(json.dumps({"prompt_tps": best}))


if __name__ == "__main__":
    main()
