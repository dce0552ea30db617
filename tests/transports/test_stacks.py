"""A process that was asked for its stack as it was ready no more."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import os, threading
from transports.stacks import be_ready, be_ready_no_more

def once():
    ready.append(be_ready())
    be_ready_no_more()

ready = []
once()
os.kill(os.getpid(), ready[0].signal)
thread = threading.Thread(target=once)
thread.start()
thread.join()
os.kill(os.getpid(), ready[1].signal)
print(ready[0].signal == ready[1].signal > 0)
"""


def test_a_signal_that_comes_too_late_ends_nobody():
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "True\n"), ended.stderr
