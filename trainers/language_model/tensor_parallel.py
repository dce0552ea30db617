"""One decoder shared out among ranks: each has a part of every layer's heads and inner width.

    rank r    query, key, value: rows of its heads    output: their columns    one allreduce
              gate, up: rows of its inner width       down: their columns      one allreduce

What `output` and `down` give a rank is its share of a sum, so that two allreduces a layer make the
stream whole again on every rank (Shoeybi et al. 2019); the table of tokens and the norms are whole
everywhere. All ranks get the same bits from an allreduce, hence the same logits, and draw the same
tokens from equal random states: no token is sent.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional

from trainers.errors import ConfigurationError

if TYPE_CHECKING:
    from collectives import Communicator
    from trainers.language_model.network import Decoder, DecoderConfig

BY_ROWS = ("query", "key", "value", "gate", "up")
BY_COLUMNS = ("output", "down")


@dataclass
class Pass:
    """One forward of a shared decoder, as this rank has seen it.

    Attributes:
        tokens: that were new to it.
        calls: of allreduce.
        nbytes: that these added up, of one rank.
        communicating: seconds in them, waiting for the other ranks included.
        seconds: in all.
    """

    tokens: int
    calls: int = 0
    nbytes: int = 0
    communicating: float = 0.0
    seconds: float = 0.0


@dataclass
class Traffic:
    """What the passes of a decoder have communicated, in their order."""

    passes: list[Pass] = field(default_factory=list)

    def summed(self, share: Tensor, comm: Communicator) -> Tensor:
        """The sum of all ranks' shares, in the place of this rank's own."""
        began = time.perf_counter()
        comm.allreduce(share, out=share)
        latest = self.passes[-1]
        latest.communicating += time.perf_counter() - began
        latest.calls += 1
        latest.nbytes += share.numel() * share.element_size()
        return share

    def of_a_token(self) -> Pass:
        """A typical pass over one token; where there was none, over the fewest."""
        fewest = min(each.tokens for each in self.passes)
        alike = [each for each in self.passes if each.tokens == fewest]
        return Pass(
            fewest,
            alike[0].calls,
            alike[0].nbytes,
            statistics.median(each.communicating for each in alike),
            statistics.median(each.seconds for each in alike),
        )

    def described(self, layers: int, ranks: int) -> str:
        """What a token costs, in a line."""
        typical = self.of_a_token()
        of = "token" if typical.tokens == 1 else f"pass over {typical.tokens} tokens"
        return (
            f"{ranks} ranks: {typical.calls} allreduces a {of} ({typical.calls // layers} a layer) "
            f"of {typical.nbytes // typical.calls:,} bytes, {typical.nbytes:,} bytes in all; "
            f"{1e6 * typical.seconds:,.0f} us a {of}, {1e6 * typical.communicating:,.0f} us of "
            "which in allreduce"
        )


def check_divides(config: DecoderConfig, ranks: int) -> None:
    """Refuses a number of ranks that cannot have equal parts of a decoder's layers."""
    for name, parts in (("key_value_heads", config.key_value_heads), ("hidden", config.inner)):
        if parts % ranks:
            raise ConfigurationError(
                f"ranks: expected a number that divides model.{name} ({parts}), found {ranks}"
            )


def share_out(decoder: Decoder, comm: Communicator) -> Traffic:
    """Leaves this rank its part of a decoder, equal on all ranks, which then run it together.

    Every forward is a collective call from then on, with equal tokens on all ranks and without
    gradients. A cache for it has room for the rank's own heads: `KeyValueCache(…, ranks=…)`.

    Returns:
        What the decoder's forwards communicate.

    Raises:
        ConfigurationError: the heads or the inner width do not divide by the number of ranks.
    """
    check_divides(decoder.config, comm.size)
    decoder.requires_grad_(False)
    traffic = Traffic()
    for name, layer in list(decoder.blocks.named_modules()):
        parent, _, last = name.rpartition(".")
        if last in BY_ROWS:
            layer.weight = _own(layer.get_parameter("weight"), 0, comm)
        elif last in BY_COLUMNS:
            summed = _Summed(_own(layer.get_parameter("weight"), 1, comm), comm, traffic)
            setattr(decoder.blocks.get_submodule(parent), last, summed)
    _time_passes(decoder, traffic)
    return traffic


def agreed_text(comm: Communicator, text: str) -> str:
    """The text, which every rank has drawn by itself; a collective call.

    Raises:
        RuntimeError: the ranks have drawn different ones: parts of different texts were added up.
    """
    for rank, theirs in enumerate(comm.allgather_object(text)):
        if theirs != text:
            raise RuntimeError(
                f"expected the same text on all ranks, found {theirs!r} on rank {rank} and "
                f"{text!r} on rank {comm.rank}: they do not compute alike"
            )
    return text


class _Summed(nn.Module):
    """A linear layer of which each rank has some columns."""

    def __init__(self, weight: nn.Parameter, comm: Communicator, traffic: Traffic) -> None:
        super().__init__()
        self.weight = weight
        self._comm = comm
        self._traffic = traffic

    def forward(self, inputs: Tensor) -> Tensor:
        return self._traffic.summed(functional.linear(inputs, self.weight), self._comm)


def _own(weight: Tensor, axis: int, comm: Communicator) -> nn.Parameter:
    # A copy: a view would keep the whole weight in memory.
    part = weight.chunk(comm.size, axis)[comm.rank].contiguous().clone()
    return nn.Parameter(part, requires_grad=False)


def _time_passes(decoder: Decoder, traffic: Traffic) -> None:
    began = 0.0

    def begin(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        nonlocal began
        traffic.passes.append(Pass(tokens=inputs[0].shape[-1]))
        began = time.perf_counter()

    def end(*_: Any) -> None:
        traffic.passes[-1].seconds = time.perf_counter() - began

    decoder.register_forward_pre_hook(begin)
    decoder.register_forward_hook(end)
