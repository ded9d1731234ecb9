"""Running the sanitized binary: what counts as a crash, and a pool that keeps both cores busy."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

RUN = os.path.abspath(os.environ.get("RUN", "build/san/run"))
TIMEOUT = 20  # seconds
ENV = dict(
    os.environ,
    ASAN_OPTIONS="exitcode=99:detect_leaks=1:allocator_may_return_null=1",
    UBSAN_OPTIONS="print_stacktrace=1",
)


def problem(args, stdin=b"", cwd=None):
    """Runs the binary; None, or what is wrong with how it ended."""
    try:
        result = subprocess.run(
            [RUN, *args], input=stdin, capture_output=True, timeout=TIMEOUT, env=ENV, cwd=cwd
        )
    except subprocess.TimeoutExpired:
        return f"still running after {TIMEOUT} s"
    message = result.stderr.decode(errors="replace")
    if "Sanitizer" in message or "runtime error:" in message:
        return message
    if result.returncode not in (0, 1, 2):
        return f"exit status {result.returncode}: {message}"
    if result.returncode and not message.strip():
        return f"exit status {result.returncode} without a message"
    return None


def report(name, cases, check):
    """Checks all cases, prints the failing ones and a summary; exits 1 if there were any."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        problems = [(case, p) for case, p in zip(cases, pool.map(check, cases)) if p]
    for case, text in problems:
        print(f"{name}: {case!r}:\n{text[:3000]}\n")
    print(f"{name}: {len(cases)} cases, {len(problems)} failed")
    sys.exit(1 if problems else 0)
