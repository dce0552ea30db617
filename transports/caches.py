"""How much of memory this machine keeps near its cores."""

from __future__ import annotations

import os
from pathlib import Path

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_IF_UNKNOWN = 64 << 20
_MOST_OF_A_CORE = 64 << 20  # more than the caches of any processor have for each of its cores


def last_level_cache_bytes(caches: Path = _CACHES) -> int:
    """The size of the largest cache of a core; a guess where the system does not say.

    Not what `sysconf` says: of some processors that is the sum of several caches.
    """
    sizes = []
    for file in caches.glob("index*/size"):
        text = file.read_text().strip()
        units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
        digits, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1)
        if digits.isdigit():
            sizes.append(int(digits) * unit)
    return max(sizes, default=_IF_UNKNOWN)


def usable_cache_bytes(caches: Path = _CACHES, processors: int | None = None) -> int:
    """What arrays may fill of the last-level cache.

    A virtual machine is told of the whole cache of its host, most of whose cores are others': no
    more is counted on than any processor has had for as many cores.

    Args:
        caches: where the system tells of them.
        processors: of this machine; None: as many as it has.
    """
    processors = processors or os.cpu_count() or 1
    return min(last_level_cache_bytes(caches), _MOST_OF_A_CORE * processors)
