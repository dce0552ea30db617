"""How gradients are followed: hooks on parameters, and what keeps alive what they tell.

    hook of a parameter        -> averaging, weakly: a network alone is one that nobody averages
    graph of a forward         -> averaging: it lives until the last backward is done
    averaging                  -> buckets -> parameters, but not the network

A graph is freed with the tensors computed in it, so nothing lives longer than the loss does. No
circle comes of it: from the averaging no way leads back to a graph, even where a network keeps
what it has computed.

A graph of torch.compile has no place for that. There a backward that comes when the averaging has
gone, as nobody kept the model, is an error.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from torch import Tensor, nn

_GONE = (
    "expected the DataParallel to live until the backward, found it gone: one that torch.compile "
    "has compiled as a whole must be kept, or its gradients are not averaged"
)
_KEPT = "collectives averages into"
_HOOKS = "_post_accumulate_grad_hooks"


class Awaited:
    """Whether a backward is still to come of a forward whose graph keeps nobody."""

    def __init__(self) -> None:
        self.backward = False


class Follower(Protocol):
    """What is told of gradients."""

    awaited: Awaited

    def has_come(self, number: int, place: int) -> None:
        """The gradient of a parameter is there: the `place`th of the `number`th bucket."""


class _Hook:
    """Tells a follower, if there still is one.

    A tensor's hooks are neither copied nor pickled with it, unlike its attributes: a network that
    was wrapped is saved as the plain one that it is.
    """

    def __init__(self, follower: Follower, number: int, place: int) -> None:
        self.follower = weakref.ref(follower)
        self._awaited = follower.awaited
        self._number = number
        self._place = place

    @property
    def is_idle(self) -> bool:
        """Whether there is nobody to tell any more."""
        return self.follower() is None

    def __call__(self, parameter: Tensor) -> None:
        follower = self.follower()
        if follower is not None:
            self._awaited.backward = False
            follower.has_come(self._number, self._place)
        elif self._awaited.backward:
            self._awaited.backward = False
            raise RuntimeError(_GONE)


class _Kept:
    """What a graph has; as long as it lives the follower does."""


def follow(follower: Follower, parameter: nn.Parameter, number: int, place: int) -> None:
    """Tells `follower` whenever the gradient of `parameter` has come."""
    hooks = getattr(parameter, _HOOKS, None) or {}
    for key in [key for key, hook in hooks.items() if isinstance(hook, _Hook) and hook.is_idle]:
        del hooks[key]
    hook = _Hook(follower, number, place)
    parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]


def is_followed(parameter: nn.Parameter) -> bool:
    """Whether a follower that still lives is told of the parameter's gradients."""
    hooks = getattr(parameter, _HOOKS, None) or {}
    return any(isinstance(hook, _Hook) and not hook.is_idle for hook in hooks.values())


def keep_for_backward(follower: Follower, output: Any, parameters: Iterable[nn.Parameter]) -> None:
    """Lets the graph in which `output` was computed keep the follower.

    Args:
        follower: which else would be gone where nobody keeps its model until the backward.
        output: of a forward: tensors, in tuples, lists, dicts and dataclasses.
        parameters: of the forward, by which the graph is found where `output` is something else.
    """
    nodes: list[Any]
    try:
        nodes = [tensor.grad_fn for tensor in _tensors(output)]
    except TypeError:
        nodes = [_accumulation(each) for each in parameters if each.requires_grad]
    kept = _Kept()
    # By way of this, which lets go at exit, while what a graph holds itself is then never freed.
    weakref.finalize(kept, [follower].clear)
    for node in nodes:
        if node is not None:
            node.metadata[_KEPT] = kept


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        for each in output.values():
            yield from _tensors(each)
    elif isinstance(output, tuple | list):
        for each in output:
            yield from _tensors(each)
    elif dataclasses.is_dataclass(output):
        for field in dataclasses.fields(output):
            yield from _tensors(getattr(output, field.name))
    elif output is not None and not isinstance(output, str | int | float | bool):
        raise TypeError(f"tensors may be anywhere in {type(output).__name__}")


def _accumulation(parameter: nn.Parameter) -> Any:
    """The node at a graph's end, which is alive as long as a graph has it."""
    view = parameter.view_as(parameter).grad_fn
    return None if view is None else view.next_functions[0][0]
