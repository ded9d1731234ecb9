"""Keeps every core of a virtual machine from sleeping while something is measured.

A host moves a virtual core that wakes next to the core that woke it. Engines put threads to sleep between their runs,
so both cores soon share a chip and with it one path to memory, until chance parts them: 50 or 78 GB/s on the same
machine. A core that never sleeps stays where it is. The work here is of the lowest class (SCHED_IDLE): it runs only
while a core has nothing else to do.
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
