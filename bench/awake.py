"""Keeps every core of a virtual machine from sleeping while something is measured.

A host's scheduler tends to place a virtual core that wakes near the core that woke it, and engines put threads to sleep
between their runs. On the machine of the README both cores share a chip, and with it one path to memory, or don't: 50 or
78 GB/s, by the minute. Cores that never sleep are moved less often, so that either state lasts for longer. The work here
is of the lowest class (SCHED_IDLE): it runs only while a core has nothing else to do.
"""

import contextlib
import os
import subprocess
import sys

SPIN = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
while os.getppid() == int(sys.argv[2]):
    for _ in range(1000000):
        pass
"""


@contextlib.contextmanager
def cores_awake():
    """Linux only. The spinning ends with the block or with this process, however that ends."""
    spinners = [
        subprocess.Popen([sys.executable, "-c", SPIN, str(core), str(os.getpid())])
        for core in sorted(os.sched_getaffinity(0))
    ]
    try:
        yield
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()
