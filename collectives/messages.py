"""Point-to-point: messages between two ranks, on lanes of their own beside the collectives."""

from __future__ import annotations

import hashlib
import operator
from typing import TYPE_CHECKING, Any, cast

from collectives.arguments import (
    check_rank,
    check_timeout,
    input_array,
    refuse_out,
    refuse_overlap,
)
from collectives.arrays import Array, Family, family_of, shape_of, share_memory
from collectives.objects import Objects
from transports import _native
from transports.errors import CollectiveError

if TYPE_CHECKING:
    from collectives.device_arrays import DeviceFamily

ANY = -1
"""As `source` of a receive: whoever sends; as its `tag`: any tag."""

_Posted = list[tuple[_native.Operation, object]]
"""Receives of a call, with their memory."""

_LARGEST_TAG = 2**31 - 1
_LONGEST_LABEL = 24


class MessageWork:
    """A send or receive under way.

    Attributes:
        source: after a receive: who sent.
        tag: after a receive: its tag.
    """

    def __init__(
        self,
        owner: Messages,
        operation: _native.Operation,
        family: Family,
        result: Array | None,
        buffer: Array,
    ) -> None:
        """Made by isend and irecv; `buffer`, in host memory, is what the operation reads or fills.

        `family` is that of the result, which may be on a device.
        """
        self._owner = owner
        self._operation = operation
        self._family = family
        self._result = result
        self._buffer = buffer

    @property
    def source(self) -> int:
        """Who sent what was received."""
        return self._operation.source

    @property
    def tag(self) -> int:
        """The tag of what was received."""
        return self._operation.tag

    def done(self) -> bool:
        """Whether it has ended."""
        return self._owner._point_to_point.test(self._operation)

    def wait(self, timeout: float | None = None) -> Any:
        """Wait for its end.

        Args:
            timeout: seconds to wait here, after which it goes on; None waits as long as the
                communicator allows, and then it has failed.

        Returns:
            After a receive the array, after a send None.

        Raises:
            CollectiveTimeout: it did not end in time.
            MismatchError: the message has another length or type than the array.
            PeerLostError: the peer ended.
        """
        if timeout is None:
            return self.end_within(self._owner.timeout, fatal=True)
        return self.end_within(check_timeout(timeout), fatal=False)

    def end_within(self, seconds: float, *, fatal: bool) -> Any:
        """As `wait`; a `fatal` deadline is one of the communicator's, and breaks it."""
        self._owner._point_to_point.wait(self._operation, seconds, fatal)
        if self._result is not None and self._buffer is not self._result:
            if self._family.on_device:
                cast("DeviceFamily", self._family).from_host(self._result, self._buffer)
            else:
                self._family.copy_into(self._result, self._buffer)
            self._buffer = self._result
        return self._result


class Messages(Objects):
    """The point-to-point calls of a communicator.

    Messages of one source to one destination with one tag arrive in order; a message that nobody
    receives yet delays no other. A send of a short message may return before it is received; the
    program must not depend on it.

    Arrays on devices go by host memory: a send waits until the caller's current stream has come to
    it, and what was received is on its way to the device, on that stream, when the call returns.
    Both ends need not have theirs on a device.
    """

    _point_to_point: _native.PointToPoint
    _carries_devices: bool

    def isend(self, x: Array, dest: int, tag: int = 0) -> MessageWork:
        """Begin to send `x`; it must not be changed until `wait()` of the result returns.

        Args:
            x: a numpy array, a torch tensor or a cupy array.
            dest: to whom.
            tag: 0..2**31-1; the receive must name the same, or ANY.
        """
        dest, tag = check_rank(dest, self.size, "dest"), _check_tag(tag)
        family, x = input_array(x)
        what = _label(family.dtype_of(x), shape_of(x))
        if family.on_device:
            self._check_on_device(family, x)
            x = cast("DeviceFamily", family).to_host(x)
            family = family_of(x)
        whole = family.contiguous(x)
        nbytes = _nbytes(whole, family)
        memory = family.memory(whole)
        operation = self._point_to_point.post_send(memory, nbytes, dest, tag, what, whole)
        return MessageWork(self, operation, family, None, whole)

    def irecv(self, x: Array, source: int = ANY, tag: int = ANY) -> MessageWork:
        """Begin to receive into `x`; it must not be touched until `wait()` of the result returns.

        Args:
            x: of the shape and dtype of what comes; filled in place.
            source: from whom; ANY is from anyone.
            tag: which; ANY is any.
        """
        return self._receive(x, source, tag, [])

    def _receive(self, x: Array, source: int, tag: int, posted: _Posted) -> MessageWork:
        source = source if source == ANY else check_rank(source, self.size, "source")
        tag = tag if tag == ANY else _check_tag(tag)
        family = family_of(x)
        refuse_out(x, shape_of(x), x, family)
        what = _label(family.dtype_of(x), shape_of(x))
        buffer = x
        if family.on_device:
            self._check_on_device(family, x)
            buffer = cast("DeviceFamily", family).room_on_host(x)
        elif not family.is_contiguous(x):
            buffer = family.empty(shape_of(x), x)
        nbytes = _nbytes(buffer, family_of(buffer))
        memory = family_of(buffer).memory(buffer)
        operation = self._point_to_point.post_recv(
            memory, nbytes, source, tag, what, buffer, posted
        )
        return MessageWork(self, operation, family, x, buffer)

    def send(self, x: Array, dest: int, tag: int = 0, timeout: float | None = None) -> None:
        """Send `x`; arguments as `isend`, errors as `MessageWork.wait`."""
        seconds = self.timeout if timeout is None else check_timeout(timeout)
        self.isend(x, dest, tag).end_within(seconds, fatal=True)

    def recv(
        self, x: Array, source: int = ANY, tag: int = ANY, timeout: float | None = None
    ) -> Array:
        """Receive into `x` and return it; arguments as `irecv`, errors as `MessageWork.wait`.

        If an exception of a signal handler leaves it, as KeyboardInterrupt does, it takes no
        message: one that has come is there for the next receive. One so long that only a part of
        it has come is lost, and all ranks are told by AbortedError.
        """
        seconds = self.timeout if timeout is None else check_timeout(timeout)
        posted: _Posted = []
        try:
            return self._receive(x, source, tag, posted).end_within(seconds, fatal=True)
        except BaseException:
            self._withdraw(posted)
            raise

    def _check_on_device(self, family: Family, x: Array) -> None:
        from collectives.which_device import check_carried, is_capturing

        check_carried(family, self._carries_devices)
        on_device = cast("DeviceFamily", family)
        if is_capturing(on_device, on_device.ordinal_of(x)):
            raise CollectiveError(
                "point-to-point on arrays of devices goes by the host, and cannot be captured in a "
                "graph"
            )

    def _withdraw(self, posted: _Posted) -> None:
        """Of a blocking call that is left: a receive must not take what a later one waits for."""
        for receive, _ in posted:
            self._point_to_point.withdraw(receive)

    def sendrecv(
        self,
        x: Array,
        dest: int,
        *,
        source: int = ANY,
        out: Array | None = None,
        tag: int = 0,
        recv_tag: int | None = None,
        timeout: float | None = None,
    ) -> Array:
        """Send `x` and receive another array at the same time.

        Args:
            x: what is sent.
            dest: to whom.
            source: from whom; ANY is from anyone.
            out: what is filled, may be `x`; left out: a new array as `x`.
            tag: of what is sent.
            recv_tag: of what is received; left out: `tag`.
            timeout: seconds; None is the communicator's.

        Returns:
            `out`, filled.
        """
        # All is checked before the receive is posted, which would otherwise stay behind.
        check_rank(dest, self.size, "dest")
        _check_tag(tag)
        seconds = self.timeout if timeout is None else check_timeout(timeout)
        family, x = input_array(x)
        family.dtype_of(x)
        if out is None:
            out = family.empty(shape_of(x), x)
        elif family_of(out, "out") is family and share_memory(family, x, out):
            refuse_overlap(x, out, family)
            sent = family.empty(shape_of(x), x)
            family.copy_into(sent, x)
            x = sent
        posted: _Posted = []
        try:
            receive = self._receive(out, source, tag if recv_tag is None else recv_tag, posted)
            send = self.isend(x, dest, tag)
            result = receive.end_within(seconds, fatal=True)
            send.end_within(seconds, fatal=True)
        except BaseException:
            self._withdraw(posted)
            raise
        return result


def _label(dtype: str, shape: tuple[int, ...]) -> str:
    """What travels with a message, for both ends to compare: short, so hashed where it is long."""
    text = f"{dtype}{list(shape)}"
    if len(text) <= _LONGEST_LABEL:
        return text
    return f"{text[:11]}#{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _check_tag(tag: int) -> int:
    try:
        number = operator.index(tag)
    except TypeError:
        raise TypeError(f"tag must be an integer, found {tag!r}") from None
    if not 0 <= number <= _LARGEST_TAG:
        raise ValueError(f"tag must be in 0..{_LARGEST_TAG}, found {number}")
    return number


def _nbytes(x: Array, family: Family) -> int:
    return family.count_of(x) * family.itemsize_of(x)
