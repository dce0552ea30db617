"""Network interfaces, and what other hosts would be told when this one names itself."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence

from launch.doctor.asking import NoAnswer, await_result, begin
from launch.doctor.findings import Finding, fine, warning

RESOLVING_SECONDS = 5.0

_FAMILIES = (socket.AF_INET, socket.AF_INET6)


def check_interfaces() -> list[Finding]:
    """Those that are up, and what this host's name resolves to."""
    import psutil

    states = psutil.net_if_stats()
    shown, outward = [], 0
    for name, addresses in sorted(psutil.net_if_addrs().items()):
        state = states.get(name)
        if state is None or not state.isup:
            continue
        found = [each.address for each in addresses if each.family in _FAMILIES]
        looped = bool(found) and all(map(_is_loopback, found))
        outward += bool(found) and not looped
        speed = f", {_speed_text(state.speed)}" if state.speed else ""
        shown.append(f"{name}{' (loopback)' * looped}: {', '.join(found) or 'no address'}{speed}")
    text = f"{len(shown)} up" if outward else "none up but loopback: ranks on this host only"
    return [fine("interfaces", text, shown), _host_name(bool(outward))]


def _host_name(outward: bool) -> Finding:
    name = socket.gethostname()
    try:
        addresses = await_result(begin(lambda: _resolved(name)), RESOLVING_SECONDS)
    except (OSError, NoAnswer) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        advice = f"Add a line for {name} to /etc/hosts: ranks elsewhere would not find it."
        return warning("host name", f"{name} does not resolve: {why}", advice)
    found = f"{name} is {', '.join(addresses)}"
    if outward and all(map(_is_loopback, addresses)):
        advice = (
            f"Give {name} this host's own address in /etc/hosts: ranks on other hosts would be "
            f"told {addresses[0]}."
        )
        return warning("host name", f"{found}, loopback only", advice)
    return fine("host name", found)


def _resolved(name: str) -> Sequence[str]:
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _speed_text(megabits: int) -> str:
    return f"{megabits / 1000:g} Gb/s" if megabits >= 1000 else f"{megabits} Mb/s"
