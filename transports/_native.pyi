"""The native engine and its kernels; see the headers in transports/native/."""

from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

_Method = TypeVar("_Method")

Buffer = Any
"""An object with the buffer protocol, an address as an int, or None for no bytes."""

class Plan:
    """A lowered schedule, as `transports.plan.Plan`; numbers out of range are a ValueError."""

    def __init__(
        self,
        rank: int,
        size: int,
        chunk_count: int,
        inputs: Sequence[int],
        outputs: Sequence[int],
        scratch: Sequence[int],
        widest: int,
        instructions: Sequence[
            tuple[
                Sequence[int],
                Sequence[int],
                Sequence[int],
                Sequence[tuple[int, int]],
                Sequence[tuple[int, int]],
                int,
                Sequence[tuple[int, int]],
                Sequence[tuple[int, int]],
            ]
        ],
        peer_inputs: Sequence[Sequence[int]] = (),
        peer_outputs: Sequence[Sequence[int]] = (),
        remote: Sequence[int] = (),
        delays: Sequence[int] = (),
        in_flight: int = 0,
    ) -> None: ...

class Call:
    """A plan bound to chunk lengths, element type and operation; made once, run often.

    `reduction` is (dtype, op, average); `text` says what the call is, the same on every rank;
    `in_flight` is how many messages a rank may have on their way: the fewer of slots and depth;
    results of arrays that together do not fit in three quarters of `cache_bytes` are written past
    the caches.
    """

    passes: int
    input_bytes: int
    output_bytes: int
    scratch_bytes: int
    one_sided: bool
    text: str
    def __init__(
        self,
        plan: Plan,
        lengths: Sequence[int],
        item_bytes: int,
        reduction: tuple[int, int, bool] | None,
        slot_bytes: int,
        text: str,
        in_flight: int = 0,
        cache_bytes: int = ...,
    ) -> None: ...
    def set_reached(self, call: Call, root: int | None, meets_to_try: bool) -> None:
        """Let `call`, the same by a one-sided plan, run where copies of the kernel's are quicker.

        On every rank. Between all, by a plan that begins with a meeting of all; or, with a root,
        between that and each of the others alone. Where some hear of nobody in the call, all must
        meet while it is tried.
        """

class SymmetricBlock:
    """Memory that every rank maps: a part for each."""

    def __init__(self, fd: int, parts: int, bytes: int) -> None: ...
    def part(self, index: int, owner: object) -> NDArray[np.uint8]:
        """A part's bytes; `owner` lives as long as any view of them."""

    def keep(self) -> object:
        """What keeps the memory mapped as long as it lives."""

def symmetric_file_bytes(parts: int, bytes: int) -> int: ...
def take_huge_pages(fd: int) -> None:
    """Fills an empty file of shared memory with huge pages, as far as there are some."""

class Deadline:
    """While it lives, a call that holds the interpreter's lock and never returns ends the process.

    It ends after `timeout` seconds, and what is waited for is said after `silence` (0: never).
    """

    def __init__(self, silence: float, timeout: float, what: str) -> None: ...
    def end(self) -> None:
        """What was watched has ended."""

class MpiCall:
    """The MPI library's own allreduce, for `Engine.remember`."""

    def __init__(
        self,
        allreduce: int,  # address
        in_place: int,  # what stands for an x that is out
        count: int,  # elements
        type: int,  # handles
        op: int,
        communicator: int,
    ) -> None: ...

class Carrier:
    """Carries what this rank tells ranks of other hosts, and what they tell it, by MPI.

    Wants thread level MULTIPLE; has a thread of its own.
    """

    done: bool  # all have closed, and nothing is under way
    broken: bool  # MPI has failed it
    sent_payload: int  # bytes to ranks of other hosts, of messages longer than 40
    def __init__(
        self,
        fd: int,  # a region that `format_region` has written
        rank: int,
        functions: Sequence[int],  # addresses, in the order of transports/mpi/library.py
        communicator: int,  # handles
        byte: int,
        any_source: int,
        places: Sequence[int],  # each rank's number in MPI's communicator
        hosts: Sequence[int],  # and the number of its host
        tag: int,  # this one and the next are for nobody else
    ) -> None:
        """Ready for what comes.

        Raises:
            RuntimeError: MPI refuses, or the region is none.
        """

    def close(self) -> None:
        """The others hear that this rank has closed; waits for nobody."""

    def progress(self) -> bool:
        """Moves on what can be; whether something could."""

    def stop(self) -> None:
        """Nothing goes or comes any more."""

class Engine:
    """Runs calls of one rank over shared memory; owns the mapping and the given pidfds."""

    closed: bool
    broken: bool
    heard: bool  # the program has heard of the trouble that was reported
    calls: int
    slot_bytes: int
    slots: int
    depth: int
    lend: int  # long messages stay in the sender's array: 0 never, 1 when quicker, 2 always
    lent: int  # messages of this rank that were
    reached: int  # calls that ran one-sided by the kernel's copies
    def found(self, call: Call) -> int:
        """Of a call that may run so: 0 nothing known, 1 it is tried, 2 it is slower, 3 quicker."""

    far_ns: int  # what it takes at least to get a line of this rank where memory is quicker
    def __init__(
        self,
        fd: int,
        rank: int,
        peers: Sequence[tuple[str, int, int]],
        crowded: bool,
        carrier: Carrier | None = None,  # reaches those of `peers` that are on other hosts
    ) -> None: ...
    def execute(
        self,
        call: Call,
        input: Buffer,
        output: Buffer,
        timeout: float,
        background: bool,
        owner: object = None,
        input_owner: object = None,
    ) -> None:
        """Run `call`; raises what the contract says, see transports/errors.py.

        `owner` is what the memory of `output` lives with, `input_owner` what that of `input` does,
        where that is only an address.
        """

    def remember(
        self,
        collective: object,
        x: object,
        out: object,
        root: object,
        op: object,
        algorithm: object,
        deterministic: object,
        call: Call | MpiCall,
        is_told: bool = False,
    ) -> None:
        """Let a `repeatable` method find `call`; must not be given what refers to this engine.

        `is_told`: another rank decides which call comes; whether it is this one is looked up.
        """

    def next_is(self, call: Call, timeout: float) -> bool:
        """Whether the call that this rank hears of next is `call`; waits for its first message."""

    def set_seal(self, key: int) -> None:
        """What the ranks alone know, 64 bits: under it they say where their arrays are."""

    has_symmetric: bool
    def add_symmetric(self, id: int, block: SymmetricBlock, parts: Sequence[int]) -> None:
        """Reach `block`; `parts[r]` is the part of rank r."""

    def remove_symmetric(self, id: int) -> None: ...
    def is_symmetric(self, memory: Buffer, bytes: int) -> bool: ...
    def queue(self, more: int) -> None:
        """Count asynchronous calls under way; while there are any, nothing is repeated."""

    def set_timeout(self, seconds: float) -> None:
        """How long a repeated call may take."""

    def set_describe(
        self,
        seconds: float,
        describe: Callable[[str, Sequence[tuple[int, str, str, bool]], bool], str],
        place: Callable[[int], str],
        alone: Callable[[], bool],
    ) -> None:
        """What makes the text of a wait that has lasted `seconds`, from whichever thread waits.

        It is called with the first line, what ranks do (rank, name, what it does, whether it waits
        for nobody itself), and whether to print the text. `place` says where in its program a rank
        has made the call it is in; `alone`, whether nothing but one thread of this program could
        act. They must not lead back to the engine.
        """

    def signal_in_middle(self, number: int, code: int) -> None:
        """In the middle of the next call send this process a signal; 0: end it with a code."""

    def take_back_signal(self) -> bool:
        """Do so no more; False: it has happened."""

    def wait_in_queue(self, more: int) -> None:
        """Count threads that wait for the end of an asynchronous call; 0: one has looked."""

    def has_gone(self, peer: int) -> bool:
        """Whether a rank's process has ended, or it has closed its communicator and not moved."""

    def move(self) -> None:
        """Say that this rank is in a communicator of those that were left of this one."""

    def tell_of_trouble(self) -> None:
        """The program hears of a failure that a call in the background has left."""

    def check_complete(self) -> None:
        """Raise the mismatch that calls of this rank, which have returned, could not see."""

    def abort(self, text: str) -> None: ...
    def check(self, ranks: Sequence[int], heard: bool = True) -> None:
        """Raise the trouble that some rank has reported, if any, or that one of these has ended.

        `heard`: the program hears of it, so `check_complete` need not tell it.
        """

    def mismatch(self, text: str) -> NoReturn:
        """Raise MismatchError on every rank."""

    def peer_lost(self, text: str) -> NoReturn:
        """Raise PeerLostError on every rank."""

    def close(self) -> None: ...
    def forsake(self) -> None:
        """In a child of fork: never touch the shared memory again."""

class Operation:
    """A send or receive under way."""

    done: bool
    source: int
    tag: int
    bytes: int

class PointToPoint:
    """Point-to-point of one rank, on lanes of its own over the engine's memory."""

    def __init__(self, engine: Engine) -> None: ...
    def post_send(
        self, buffer: Buffer, bytes: int, dest: int, tag: int, what: str, keep: object = None
    ) -> Operation:
        """Begin to send; `keep` is held until the operation is done: what owns an address."""

    def post_recv(
        self,
        buffer: Buffer,
        bytes: int,
        source: int,
        tag: int,
        what: str,
        keep: object = None,
        posted: list[tuple[Operation, object]] | None = None,
    ) -> Operation:
        """Begin to receive; the operation and `keep` are in `posted` before anything else can be.

        So a signal handler that raises just then leaves no receive that nobody knows.
        """

    def withdraw(self, receive: Operation) -> None:
        """Take back, once, what an exception has left: it takes no message.

        One that has come is there for the next receive, so the memory must still be. A long one of
        which only a part has come is lost: that breaks the communicator.
        """

    def send(
        self, buffer: Buffer, bytes: int, dest: int, tag: int, what: str, timeout: float
    ) -> None: ...
    def recv(
        self, buffer: Buffer, bytes: int, source: int, tag: int, what: str, timeout: float
    ) -> Operation: ...
    def wait(self, operation: Operation, timeout: float, fatal: bool = True) -> None:
        """Wait for its end; a deadline that is not `fatal` leaves the operation under way."""

    def test(self, operation: Operation) -> bool: ...
    def close(self) -> None: ...

def threads_outside() -> int:
    """How many threads are in a call here without Python's lock, and will want it back."""

def forget_threads() -> None:
    """In a child of fork: there are none."""

def repeatable(function: _Method) -> _Method:
    """Have a collective's method look first whether the same call was remembered.

    If it was, it runs at once, and nothing of the method does: only blocking calls without a
    time-out of their own, on contiguous numpy arrays. `function` has the collective's name, takes
    the array alone by position, and belongs to an object whose `_engine` is an `Engine`.
    """

def region_bytes(
    ranks: int, depth: int, slots: int, slot_bytes: int, lane_slots: int, lane_bytes: int
) -> int: ...
def format_region(
    fd: int,
    ranks: int,
    depth: int,
    slots: int,
    slot_bytes: int,
    lane_slots: int,
    lane_bytes: int,
) -> None: ...
def supports(dtype: int, op: int) -> bool: ...
def reduce(
    dtype: int,
    op: int,
    inputs: Sequence[Buffer],
    out: Buffer,
    also: Buffer | None = None,
    stores: int = 0,
    follows: int = 0,
) -> None:
    """Fold the inputs in the order given.

    `stores`: 1, out is written past the caches; 2, also too. `follows`: how many elements behind
    these may be asked for already.
    """

def divide(dtype: int, data: Buffer, divisor: int) -> None: ...
def instruction_set() -> str: ...
def use_instruction_set(name: str) -> None: ...
def limit_calls(
    method: str,
    pingpong: bool,
    moves: Sequence[tuple[Sequence[int], Sequence[int], int]],
    sets: int,
    stride: int,
    lines: int,
    rank: int,
    ranks: int,
    number: int,
    calls: int,
    timeout: float,
) -> int:
    """Tell the other ranks by a flag, then make the moves; so many times: the benchmark's limit.

    `method` is copy, stream or kernel; a move is (sources, destinations, bytes), by address; call i
    works `i % sets * stride` bytes further on. `lines` is the address of a cache line a rank,
    shared and zero at first; `number` is what the last call returned, 0 at first.
    """
