"""One measurement of a peer in a process of its own.

    peer.py ENGINE JOB DEPTH --model MODEL --threads N --kv-type T [--no-mmap]

Runs in .venv-bench. ENGINE is llama or ik. JOB:
  prompt  seconds to process DEPTH tokens in batches of 512
  depth   seconds of the last 512 of DEPTH tokens, then of 32 tokens generated after them
  first   seconds from loading the model to the first token's logits after a DEPTH-token prompt
Prints one JSON object. The token ids come on standard input.
"""

import argparse
import ctypes
import importlib.util
import json
import sys
import time
from pathlib import Path

BATCH = 512
GENERATED = 32
TYPES = {"f32": 0, "f16": 1, "q8_0": 8}  # ggml's numbers


def load_api(engine):
    if engine == "ik":
        package = Path(importlib.util.find_spec("ik_llama_cpp").origin).parent
        ctypes.CDLL(package / "lib" / "libggml.so", ctypes.RTLD_GLOBAL)  # its libllama doesn't say where it is
        from ik_llama_cpp import _ctypes_api as api
    else:
        from llama_cpp import llama_cpp as api
    return api


class Peer:
    def __init__(self, engine, path, threads, kv_type, n_ctx, use_mmap=True):
        self.api = api = load_api(engine)
        api.llama_backend_init()
        model_params = api.llama_model_default_params()
        model_params.use_mmap = use_mmap
        self.model = api.llama_model_load_from_file(path.encode(), model_params)
        params = api.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = n_ctx, BATCH, BATCH
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = TYPES[kv_type]
        if engine == "ik":
            params.flash_attn = True
        else:
            params.flash_attn_type = 1
        self.context = api.llama_init_from_model(self.model, params)
        if not self.model or not self.context:
            sys.exit(f"peer.py: {engine} can't load {path}")
        self.batch = api.llama_batch_init(BATCH, 0, 1)
        self.n = 0

    def decode(self, ids):
        """Runs up to BATCH tokens; logits of the last one only. Returns the seconds taken."""
        batch = self.batch
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i] = token, self.n + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = i + 1 == len(ids)
        batch.n_tokens = len(ids)
        start = time.perf_counter()
        if self.api.llama_decode(self.context, batch):
            sys.exit("peer.py: llama_decode failed")
        logits = self.api.llama_get_logits_ith(self.context, len(ids) - 1)  # waits for the result
        ctypes.cast(logits, ctypes.POINTER(ctypes.c_float))[0]
        self.n += len(ids)
        return time.perf_counter() - start

    def forget(self):
        self.n = 0
        if hasattr(self.api, "llama_kv_cache_clear"):
            self.api.llama_kv_cache_clear(self.context)
        else:
            self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)

    def prefill(self, ids):
        """[(tokens, seconds)] of each batch; the last one is whole."""
        first = len(ids) % BATCH
        parts = [ids[:first]] * bool(first) + [ids[i : i + BATCH] for i in range(first, len(ids), BATCH)]
        return [(len(part), self.decode(part)) for part in parts]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("engine", choices=["llama", "ik"])
    parser.add_argument("job", choices=["prompt", "depth", "first"])
    parser.add_argument("depth", type=int)
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--kv-type", default="f16")
    parser.add_argument("--no-mmap", action="store_true")
    args = parser.parse_args()
    ids = [int(i) for i in sys.stdin.read().split()][: args.depth + GENERATED]
    load_api(args.engine)  # Python's own imports are not the engine's
    start = time.perf_counter()
    n_ctx = args.depth + GENERATED + 224
    peer = Peer(args.engine, args.model, args.threads, args.kv_type, n_ctx, not args.no_mmap)
    if args.job != "first":
        peer.decode(ids[:BATCH])  # to warm up
        peer.forget()
    batches = peer.prefill(ids[: args.depth])
    if args.job == "first":
        result = {"seconds": time.perf_counter() - start}
    elif args.job == "prompt":
        result = {"prompt_tps": args.depth / sum(s for _, s in batches)}
    else:
        tokens, seconds = batches[-1]
        generated = [peer.decode([ids[args.depth + i]]) for i in range(GENERATED)]
        result = {"prompt_tps": tokens / seconds, "gen_tps": GENERATED / sum(generated)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
