"""Damaged copies of a small model under ASan and UBSan: fuzz_models.py [N [SEED]]

Each copy goes through --inspect, --tokenize and the generation of a token. A run may succeed or say what is
wrong with the file; it must not crash, leak or hang.
"""

import random
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from reference import tiny  # noqa: E402

from sanitized import problem, report  # noqa: E402

EXTREME = [0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1, 2**40]
JOBS = (
    ["--inspect"],
    ["-p", "the rain", "--tokenize"],
    ["-p", "the rain", "-n", "1", "-c", "64", "--seed", "1"],
)


def damage(rng, whole, header):
    """A copy with one to four injuries, most of them in the first `header` bytes, where the structure is."""
    data = bytearray(whole)
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(min(header, len(data)) if rng.random() < 0.9 else len(data))
        kind = rng.randrange(6)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at] = rng.randrange(256)
        elif kind == 2:
            size = rng.choice((4, 8))
            data[at : at + size] = (rng.choice(EXTREME) % 2 ** (8 * size)).to_bytes(size, "little")
        elif kind == 3:
            del data[at : at + rng.randrange(1, 64)]
        elif kind == 4:
            data[at:at] = rng.randbytes(rng.randrange(1, 64))
        else:
            del data[max(at, 1) :]
    return bytes(data)


def main():
    n, seed = (int(a) for a in (sys.argv[1:] + ["500", "1"][len(sys.argv) - 1 :]))
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.gguf"
        whole = tiny.write(
            path, tiny.Tiny(n_embd=32, n_ff=32, n_ctx=64, mosa="group", infini=True)
        ).read_bytes()
        header = whole.index(b"token_embd.weight") + 2000
        copies = [path.with_name(f"{i}.gguf") for i in range(n)]
        for copy in copies:
            copy.write_bytes(damage(rng, whole, header))

        def check(copy):
            return next(filter(None, (problem([str(copy), *job], cwd=folder) for job in JOBS)), None)

        report("fuzz_models", copies, check)


if __name__ == "__main__":
    main()
