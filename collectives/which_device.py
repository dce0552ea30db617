"""Which device is a rank's."""

from __future__ import annotations

from collectives import settings
from collectives.arrays import Family
from collectives.device_arrays import CUPY, EMULATED, DeviceFamily
from transports.cuda_ipc.device import Device, DeviceError
from transports.errors import CollectiveError


def own_device(local_rank: int) -> Device:
    """The device of the rank with that number on this host: in turn, where there are fewer.

    Raises:
        ModuleNotFoundError: cupy is missing.
        CollectiveError: there is no device.
    """
    try:
        return device_for(EMULATED if settings.emulates_devices() else CUPY, None, local_rank)
    except DeviceError as error:
        raise CollectiveError(f"transport cuda_ipc: {error}") from None


def device_for(family: Family, ordinal: int | None, local_rank: int = 0) -> Device:
    """The device with that number in this process; None: that of a rank, in turn.

    Raises:
        DeviceError: there is none.
        ValueError: there is none with that number.
        ModuleNotFoundError: what drives such devices is not installed.
    """
    device: Device
    if "emulated" in family.name:
        from transports.cuda_ipc.emulated_array import emulated_count, emulated_device

        device = emulated_device(local_rank % emulated_count() if ordinal is None else ordinal)
    else:
        from transports.cuda_ipc.nvidia import nvidia_count, nvidia_device

        number = local_rank % nvidia_count() if ordinal is None else ordinal
        device = nvidia_device(number, settings.kernel_folder())
    return device


def check_carried(family: Family, carries: bool) -> None:
    """Refuses arrays on devices where a communicator carries none.

    Raises:
        TypeError: it does not.
    """
    if not carries:
        raise TypeError(
            f"expected an array in host memory, found a {family.name} array: transport shm "
            "carries host memory only; transport auto or cuda_ipc carries both"
        )


def is_capturing(family: DeviceFamily, ordinal: int) -> bool:
    """Whether the caller's current stream on a device goes into a graph; makes no device."""
    stream = family.stream_of(ordinal)
    if "emulated" in family.name:
        return device_for(family, ordinal).is_capturing(stream)
    from transports.cuda_ipc import nvidia

    return nvidia.is_capturing(stream)
