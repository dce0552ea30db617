"""Where a model is: in host memory, or on this rank's GPU; and where what it shares travels."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from collectives.settings import emulates_devices
from trainers.errors import ConfigurationError
from trainers.precision import has_native_bfloat16

if TYPE_CHECKING:
    from collectives import Communicator

Kind = Literal["cpu", "cuda"]

TRANSPORTS: dict[Kind, str] = {"cpu": "auto", "cuda": "cuda_ipc"}
"""By which ranks are connected that train on it."""


class Placement:
    """Where the models of a run are.

    Args:
        device: of the models.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @property
    def on_gpu(self) -> bool:
        """Whether they are on a GPU."""
        return self.device.type == "cuda"

    @property
    def has_native_bfloat16(self) -> bool:
        """Whether what computes there multiplies bfloat16 by itself."""
        if not self.on_gpu:
            return has_native_bfloat16()
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))

    def put(self, samples: Any) -> Any:
        """Samples, however tensors are put together in them, where the model is."""
        return samples if not self.on_gpu else moved(samples, self.device)

    def seed(self, number: int) -> None:
        """Lets what is drawn at random follow from a number, on the host and where the model is."""
        # Not torch.manual_seed, which looks after every other device too, for 0.3 ms.
        torch.default_generator.manual_seed(number)
        if self.on_gpu:
            torch.cuda.manual_seed(number)

    def from_host(self, model: nn.Module) -> nn.Module:
        """The model to whoever has inputs, and wants outputs, in host memory."""
        return model if not self.on_gpu else FromHost(model, self.device)

    def on_host(self, model: nn.Module) -> nn.Module:
        """The model as it is now, in host memory."""
        return model if not self.on_gpu else copy.deepcopy(model).cpu()


class FromHost(nn.Module):
    """A model elsewhere, whose inputs and outputs are in host memory.

    Args:
        model: where it is.
        device: and that.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.model = model
        self._device = device

    def forward(self, *inputs: Any) -> Any:
        """There and back."""
        return moved(self.model(*moved(inputs, self._device)), torch.device("cpu"))


def moved(value: Any, device: torch.device) -> Any:
    """A value with all tensors in it on a device: in tuples, named ones too, lists and mappings."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: moved(each, device) for key, each in value.items()}
    if isinstance(value, list):
        return [moved(each, device) for each in value]
    if isinstance(value, tuple):
        parts = [moved(each, device) for each in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


def placement_of(comm: Communicator, kind: Kind) -> Placement:
    """Where this rank's models are, of ranks that are connected as `TRANSPORTS` says.

    Emulated devices have no torch: there models stay in host memory, and only what they share is on
    a device.
    """
    if kind == "cpu" or emulates_devices():
        return Placement(torch.device("cpu"))
    assert comm.device is not None, "the ranks are connected by their devices"
    torch.cuda.set_device(comm.device)
    return Placement(torch.device("cuda", comm.device))


def check_placement(kind: Kind) -> None:
    """Refuses what this machine or environment does not have.

    Raises:
        ConfigurationError: it names what is missing.
    """
    if kind == "cpu" or emulates_devices():
        return
    if importlib.util.find_spec("cupy") is None:
        raise ConfigurationError(
            "train.device: cuda needs cupy, which is not installed: pip install "
            "'collectives-runtime[cuda13]' (or [cuda12])"
        )
    if not torch.backends.cuda.is_built():  # type: ignore[no-untyped-call]
        raise ConfigurationError(
            f"train.device: cuda needs a torch that is built with CUDA, found {torch.__version__}"
        )
    if torch.cuda.device_count() == 0:
        raise ConfigurationError("train.device: expected a GPU of NVIDIA for cuda, found none")


def travels_on(comm: Communicator, device: torch.device) -> str | None:
    """On which device the arrays of calls are, for a model on `device`; None: in host memory."""
    if emulates_devices():
        return "cuda" if comm.device is not None else None
    if device.type != "cuda" or not comm.carries_devices:
        return None
    # Those of a communicator are on one.
    return str(device) if comm.device in (None, device.index) else None


def empty_to_travel(
    comm: Communicator, elements: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Memory that all ranks reach, for what a model on `device` shares; a collective call."""
    found: Tensor = comm.empty(elements, dtype, travels_on(comm, device))
    return found
