"""Sharded: each rank moves a part of the parameters, and remembers what the optimizer needs of it.

This is the first stage of ZeRO (Rajbhandari et al. 2020). Gradients are reduce-scattered in place
of allreduced; the optimizer of a rank moves its own pieces of the parameters, and an allgather
gives all ranks everyone's. As many bytes travel as by an allreduce, while what the optimizer
remembers takes a rank 1/N of the memory.

    model = DataParallel(net, comm, shard="elements")
    optimizer = ShardedOptimizer(model, torch.optim.AdamW, lr=1e-3)
    loss(model(inputs), targets).backward()
    optimizer.step()                                  # a collective call
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from trainers.buckets import Bucket, aligned, as_called_on, view_of
from trainers.placement import empty_to_travel

if TYPE_CHECKING:
    from collectives import Communicator
    from trainers.data_parallel import DataParallel


class ShardedBucket(Bucket):
    """A bucket of which each rank has a part: the averaged gradients there, and the weights.

    Making one is a collective call. The parameters lie end to end as the gradients do.

    Args:
        parameters: as in `Bucket`.
        flat: as in `Bucket`.
        sent: as in `Bucket`.
        counts: elements of each rank's part, in order.
        comm: the ranks.

    Attributes:
        pieces: this rank's piece of each parameter of which it has one, by the parameter's place.
            Whole where the parameter is, else flat.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        flat: Tensor,
        sent: Tensor,
        counts: Sequence[int],
        comm: Communicator,
    ) -> None:
        super().__init__(parameters, flat, sent)
        if flat.device != sent.device:
            raise ValueError(
                f"shard: expected parameters where arrays of calls may be, found some on "
                f"{flat.device}, and calls carry only arrays in host memory"
            )
        self.counts = tuple(counts)
        self._are_equal = len(set(counts)) == 1
        self._begin = sum(counts[: comm.rank])
        self._end = self._begin + counts[comm.rank]
        most, count = max(counts), counts[comm.rank]
        self._weights = empty_to_travel(comm, flat.numel(), flat.dtype, flat.device)
        self._own_weights = self._weights[self._begin : self._end]
        # A call's arrays must not overlap: what is sent of the weights is a copy.
        self._weights_out = empty_to_travel(comm, most, flat.dtype, flat.device)[:count]
        self._arrived = empty_to_travel(comm, most, sent.dtype, flat.device)[:count]
        self._own_gradients: Tensor = self._arrived
        if self.is_narrowed:
            self._own_gradients = torch.zeros(count, dtype=flat.dtype, device=flat.device)
        self._earlier: Tensor | None = None
        self._has_gradients = False
        by_rank = (comm.size, -1) if self._are_equal else (-1,)
        self._rows = as_called_on(self.sent.view(by_rank))
        self._comes_to = as_called_on(self._arrived)
        self._weight_rows = as_called_on(self._weights.view(by_rank))
        self._weights_sent = as_called_on(self._weights_out)
        with torch.no_grad():
            self._weights.zero_()
            for parameter, offset in zip(self.parameters, self.offsets, strict=True):
                view = view_of(self._weights, offset, parameter)
                parameter.data = view.copy_(parameter)
        self.pieces, self._gradients = self._cut()

    def begin_averaging(self, comm: Communicator, *, async_op: bool) -> Any:
        """The call that averages it over ranks, each getting its own part."""
        self.put_out()
        if self._has_gradients:  # to which these are added
            self._earlier = self._own_gradients.clone()
        return comm.reduce_scatter(
            self._rows,
            out=self._comes_to,
            counts=None if self._are_equal else self.counts,
            deterministic=self.is_narrowed,
            async_op=async_op,
        )

    def end_averaging(self) -> None:
        """Takes in this rank's part; the gradients of whole parameters are no more."""
        if self.is_narrowed:
            self._own_gradients.copy_(self._arrived)
        if self._earlier is not None:
            self._own_gradients.add_(self._earlier)
            self._earlier = None
        self._has_gradients = True
        for place, piece in self.pieces.items():
            piece.grad = self._gradients[place]
        for parameter in self.parameters:
            parameter.grad = None

    def forget_gradients(self) -> None:
        """Those of the pieces, too."""
        super().forget_gradients()
        self._has_gradients = False
        for piece in self.pieces.values():
            piece.grad = None

    def take_all(self) -> None:
        """Nothing: the gradients of pieces are not replaced."""

    @property
    def averaged(self) -> Tensor:
        """The averaged gradients of this rank's part."""
        return self._own_gradients

    def gather_weights(self, comm: Communicator) -> None:
        """Gives all ranks every rank's part of the weights, as it is now."""
        self._weights_out.copy_(self._own_weights)
        counts = None if self._are_equal else self.counts
        comm.allgather(self._weights_sent, out=self._weight_rows, counts=counts)

    def gather(self, comm: Communicator, own: Tensor) -> list[Tensor] | None:
        """On rank 0 the tensors, shaped as the parameters, of which every rank has its part.

        Args:
            comm: the ranks.
            own: this rank's part, as long as its part of the bucket; in host memory.
        """
        whole = comm.gather(own, counts=self.counts)
        if whole is None:
            return None
        return [
            view_of(whole, offset, parameter).clone()
            for parameter, offset in zip(self.parameters, self.offsets, strict=True)
        ]

    def own_part(self, place: int, whole: Tensor) -> Tensor:
        """Of a tensor shaped as a parameter what belongs to this rank's piece of it."""
        parameter, offset = self.parameters[place], self.offsets[place]
        flat = torch.zeros(aligned(parameter), dtype=whole.dtype, device=parameter.device)
        view_of(flat, 0, parameter).copy_(whole)
        begin, end = self._within(place)
        part: Tensor = flat[begin - offset : end - offset]
        piece = self.pieces[place]
        # A copy: what is kept must not be a view of the whole.
        found: Tensor = part.as_strided(piece.size(), piece.stride()).clone()
        return found

    def room_for(self, place: int) -> slice:
        """Where in this rank's part its piece of a parameter lies."""
        begin, end = self._within(place)
        return slice(begin - self._begin, end - self._begin)

    def _within(self, place: int) -> tuple[int, int]:
        """Begin and end in the bucket of what this rank has of a parameter."""
        offset = self.offsets[place]
        end = offset + self.parameters[place].numel()
        return max(offset, self._begin), min(end, self._end)

    def _cut(self) -> tuple[dict[int, nn.Parameter], dict[int, Tensor]]:
        """The pieces, which are the very memory of the parameters, and their gradients."""
        pieces: dict[int, nn.Parameter] = {}
        gradients: dict[int, Tensor] = {}
        for place, parameter in enumerate(self.parameters):
            begin, end = self._within(place)
            if begin >= end:
                continue
            room = self.room_for(place)
            weights, gradient = self._own_weights[room], self._own_gradients[room]
            if end - begin == parameter.numel():
                weights, gradient = (view_of(each, 0, parameter) for each in (weights, gradient))
            pieces[place], gradients[place] = nn.Parameter(weights), gradient
        return pieces, gradients


def shared_out(
    parameters: Sequence[nn.Parameter],
    elements: int,
    how: Literal["elements", "parameters"],
    loads: list[int],
) -> tuple[list[nn.Parameter], list[int]]:
    """The parameters of a bucket in the order of the ranks that move them, and each rank's part.

    Args:
        parameters: of the bucket.
        elements: how long it is.
        how: cut anywhere, into equal parts, or leaving parameters whole.
        loads: elements that each rank has already, of other buckets; these are added.
    """
    size = len(loads)
    if how == "elements":
        return list(parameters), [elements // size] * size
    theirs: list[list[nn.Parameter]] = [[] for _ in loads]
    counts = [0] * size
    # The largest first, to whoever has least: nearly even in the end, and alike on all ranks.
    for parameter in sorted(parameters, key=aligned, reverse=True):
        rank = min(range(size), key=lambda rank: (loads[rank], rank))
        theirs[rank].append(parameter)
        counts[rank] += aligned(parameter)
        loads[rank] += aligned(parameter)
    counts[-1] += elements - sum(counts)
    return [parameter for each in theirs for parameter in each], counts


def gather_memories(model: DataParallel, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the optimizers of all ranks remember, on rank 0; a collective call if it is sharded.

    Args:
        model: whose parameters they move.
        own: of this rank's pieces, by `kind/parameter`. What is shaped as its piece is a piece of
            what is remembered of the parameter; else, as a number of steps, it is alike on all.
    """
    if model.shard is None:
        return dict(own)
    pieces = model.pieces
    everyones: list[dict[str, Tensor | None]] = model.comm.allgather_object(
        {
            key: None if memory.shape == pieces[key.partition("/")[2]].shape else memory.cpu()
            for key, memory in own.items()
        }
    )
    known = {key: memory for theirs in everyones for key, memory in theirs.items()}
    found = {key: memory for key, memory in known.items() if memory is not None}
    for bucket in model.sharded_buckets:
        names = [model.names[parameter] for parameter in bucket.parameters]
        kinds = {kind for kind, _, name in (key.partition("/") for key in known) if name in names}
        for kind in sorted(kinds):
            keys = [f"{kind}/{name}" for name in names]
            cut = [key in known and known[key] is None for key in keys]
            if not any(cut):
                continue
            part = torch.zeros(bucket.averaged.numel(), dtype=bucket.flat.dtype)
            for place, piece in bucket.pieces.items():
                if keys[place] in own and cut[place]:
                    room = part[bucket.room_for(place)]
                    room.as_strided(piece.size(), piece.stride()).copy_(own[keys[place]])
            if (whole := bucket.gather(model.comm, part)) is not None:
                found |= {
                    key: memory
                    for key, memory, is_cut in zip(keys, whole, cut, strict=True)
                    if is_cut
                }
    return found if model.comm.rank == 0 else {}


def own_memory(model: DataParallel, name: str, memory: Tensor) -> Tensor:
    """Of what is remembered of a parameter, this rank's part, as its piece lies in memory."""
    bucket, place = next(
        (bucket, place)
        for bucket in model.buckets
        for place, parameter in enumerate(bucket.parameters)
        if model.names[parameter] == name
    )
    parameter = bucket.parameters[place]
    if memory.shape != parameter.shape:
        return memory.to(parameter.device)
    if isinstance(bucket, ShardedBucket):
        return bucket.own_part(place, memory)
    return torch.empty_like(parameter).copy_(memory)


class ShardedOptimizer(torch.optim.Optimizer):
    """An optimizer of which each rank has the part for its own pieces.

    Its groups and state are those of this rank's pieces, so that schedules of rates work as usual.

    Args:
        model: made with `shard`.
        kind: an optimizer of torch; one that does not work element by element, as it looks at a
            parameter as a matrix, needs `shard="parameters"`.
        group: which group a parameter belongs to, by its name and itself: the options of the
            group. By default there is one.
        options: of the optimizer.

    Raises:
        ValueError: the model is not sharded.
        TypeError: `kind` is an optimizer that is made already.
    """

    def __init__(
        self,
        model: DataParallel,
        kind: Callable[..., torch.optim.Optimizer],
        group: Callable[[str, nn.Parameter], dict[str, Any]] = lambda name, parameter: {},
        **options: Any,
    ) -> None:
        if model.shard is None:
            raise ValueError("expected a model that is sharded (shard='elements'), found one whole")
        if not callable(kind):
            raise TypeError(
                f"kind: expected the optimizer's class (torch.optim.{type(kind).__name__}), whose "
                "options follow, found an instance"
            )
        self._model = model
        pieces = model.pieces
        groups: dict[str, dict[str, Any]] = {}
        # The same groups in the same order on every rank, some of them without a piece here.
        for parameter, name in model.names.items():
            if not parameter.requires_grad:
                continue
            own = group(name, parameter)
            found = groups.setdefault(repr(sorted(own.items())), {**own, "params": []})
            found["params"] += [pieces[name]] if name in pieces else []
        self._inner = kind(list(groups.values()), **options)
        super().__init__(self._inner.param_groups, self._inner.defaults)
        self._be_the_inner()

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Moves this rank's pieces and gives all ranks everyone's; a collective call."""
        if closure is not None:
            raise NotImplementedError("a sharded optimizer takes no closure")
        self._inner.step()
        self._model.gather_parameters()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave: of this rank's pieces, among as many ranks."""
        self._inner.load_state_dict(state_dict)
        self._be_the_inner()

    def _be_the_inner(self) -> None:
        self.param_groups = self._inner.param_groups
        self.state = self._inner.state

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients, of parameters and pieces."""
        self._model.zero_grad(set_to_none)
