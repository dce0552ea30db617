"""What ends one of several hosts' ranks is told to all, though they wait on devices."""

from __future__ import annotations

import pytest
from harness.device_arrays import environment
from harness.under_mpi import told_by_ranks

DEVICES = environment("devices=2,seed=1") | {
    "COLLECTIVES_DEVICE_SLOTS": "2",
    "COLLECTIVES_DEVICE_SLOT_BYTES": "1024",
}

PROGRAM = """
import os, pathlib, sys, time
import numpy as np
rank, what, said = int(os.environ["PMI_RANK"]), sys.argv[1], pathlib.Path(sys.argv[2])
os.environ["COLLECTIVES_HOST_ID"] = "ab"[rank // 2]
import collectives
from harness.device_arrays import on_device

def say(text):
    (said / str(rank)).write_text(text)

with collectives.init(timeout=2 if what == "is late" else 60) as comm:
    x = on_device(np.ones(4, np.float32))
    long = on_device(np.arange(100_000, dtype=np.float32))
    comm.allreduce(x).get()
    began = time.monotonic()
    try:
        if rank == 3:
            if what == "raises":
                raise RuntimeError("bad luck")
            if what == "is late":
                time.sleep(3)
            if what == "leaves":
                sys.exit(0)
            if what == "differs":
                x = on_device(np.ones(5, np.float32))
            if what == "is awaited":
                time.sleep(0.5)
        if what == "is awaited":
            mine = long if rank == 0 else on_device(np.zeros(100_000, np.float32))
            work = comm.broadcast(mine, algorithm="linear", async_op=True)
            if rank == 0:
                sys.exit(0)  # once all have what it has sent
            time.sleep(0.2)
            assert work.wait().get()[-1] == 99_999
            say("fine")
            sys.exit(0)
        while True:
            comm.allreduce(long if rank < 3 else x if what == "differs" else long).get()
            time.sleep(0.01)
    except collectives.CollectiveError as error:
        text = " ".join(str(error).split())
        say(f"{time.monotonic() - began:.1f} {type(error).__name__}: {text}")
        raise
"""


@pytest.fixture
def run(tmp_path):
    return lambda what: told_by_ranks(PROGRAM, what, 4, tmp_path, DEVICES, timeout=60)


@pytest.mark.parametrize(
    "what, kind, words, heard",
    [
        ("raises", "AbortedError", ["rank 3 raised RuntimeError", "bad luck"], (0, 1, 2)),
        ("leaves", "PeerLostError", ["rank 3 (pid", "closed its communicator"], (0, 1, 2)),
        pytest.param(
            "is late",
            "",
            ["not done on the device after 2 s", "waits for rank"],
            (0, 1, 2, 3),
            marks=pytest.mark.full,
        ),
        ("differs", "MismatchError", ["float32[100000]", "float32[5]"], (0, 1, 2, 3)),
    ],
)
def test_all_ranks_hear_of_it(run, what, kind, words, heard):
    ended, said = run(what)
    assert sorted(said) == list(heard), ended.stderr
    for text in said.values():
        assert kind in text and all(word in text for word in words), text
        assert float(text.split()[0]) < 12  # two seconds of time-out, and a second ten times
    assert ended.code != 0


def test_a_rank_leaves_once_others_have_what_it_has_sent(run):
    ended, said = run("is awaited")
    assert ended.code == 0, ended.stderr
    assert said == dict.fromkeys((1, 2, 3), "fine")
