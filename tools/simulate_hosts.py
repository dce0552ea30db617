"""Simulates the schedules for several hosts where nobody has as many: a table, and a picture.

    python tools/simulate_hosts.py docs/reports/hosts-simulated

writes NAME.md and NAME.png: for 64, 1024 and 8192 hosts of 8 ranks how long calls take on the model
machine, and how long a rank takes to plan its part. Links are those measured on two namespace hosts
(docs/log/2026-11-29-over-hosts.md): a message of 8 bytes between hosts takes 28 us, and a host's
wire, which its 8 lanes share, moves 0.119 GB/s; inside a host it is nominal.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from collectives.catalogue import find
from collectives.cost.links import Link, Links, spread_over
from collectives.cost.simulation import run_simulation
from collectives.lowering import lower
from collectives.proof.verification import verify

EACH = 8
HOSTS = (64, 1024, 8192)
SIZES = (1 << 10, 1 << 20, 1 << 30)
WIRE = 0.119e9  # bytes a second of a host
INSIDE = Link(alpha=0.5e-6, beta=0.2e-9, gamma=0.1e-9)
NAMES = dict(zip(SIZES, ("1 KiB", "1 MiB", "1 GiB"), strict=True))
CALLS = ("allreduce", "reduce_scatter", "allgather", "barrier")


def links(hosts: int) -> Links:
    """Each lane has its share of the wire."""
    between = Link(alpha=28e-6, beta=EACH / WIRE, gamma=INSIDE.gamma)
    return Links(inside=INSIDE, between=between, hosts=spread_over(hosts * EACH, hosts))


def bound(collective: str, hosts: int, nbytes: int) -> float:
    """Seconds in which the wire alone moves what must leave a host."""
    share = (hosts - 1) / hosts * nbytes / WIRE
    return {"allreduce": 2 * share, "barrier": 0.0}.get(collective, share)


def main(target: Path) -> None:
    """Simulates, and writes."""
    rows, planning = [], []
    for hosts in HOSTS:  # first: it is timed, and wants the machine for itself
        size, there = hosts * EACH, links(hosts)
        for collective in CALLS:
            algo = find(collective, "hierarchical")
            began = time.perf_counter()
            plan = lower(algo, size // 2, size, 0, there.hosts)
            seconds = time.perf_counter() - began
            planning.append((hosts, collective, seconds, len(plan.instructions)))
            print(*planning[-1], flush=True)
    for hosts in HOSTS:
        size, there = hosts * EACH, links(hosts)
        for collective in CALLS:
            algo = find(collective, "hierarchical")
            for nbytes in SIZES if collective != "barrier" else (0,):
                found = run_simulation(algo, size, nbytes, there)
                rows.append((hosts, collective, nbytes, float(found.seconds), found.method))
                print(*rows[-1], flush=True)
    verify(find("allreduce", "hierarchical"), 64, 0, spread_over(64, 8))  # the same schedules
    write(target, rows, planning)


def write(target: Path, rows: list, planning: list) -> None:
    """The page and the picture."""
    lines = [
        "# The schedules for several hosts, simulated",
        "",
        f"Hosts of {EACH} ranks, on the model machine ([cost.md](../cost.md)), with the links in",
        "`tools/simulate_hosts.py`, which made this page. `of wire`: what the wire alone takes",
        "for the bytes that must leave a host. A short array takes as long as its messages, one of",
        "each host to each other: there the table has recursive doubling.",
        "",
        "| hosts | call | bytes | seconds | of wire |",
        "| ---: | :--- | ---: | ---: | ---: |",
    ]
    for hosts, collective, nbytes, seconds, _ in rows:
        least = bound(collective, hosts, nbytes)
        share = f"{least / seconds:.0%}" if least else "–"
        lines.append(f"| {hosts} | {collective} | {nbytes} | {seconds:.4g} | {share} |")
    lines += [
        "",
        "A rank plans its part alone, in time that grows with the number of ranks, not its square:",
        "",
        "| hosts | call | instructions | seconds |",
        "| ---: | :--- | ---: | ---: |",
        *(f"| {h} | {name} | {count} | {seconds:.3g} |" for h, name, seconds, count in planning),
        "",
        f"![Seconds against ranks]({target.name}.png)",
    ]
    target.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4.2))
    for nbytes in SIZES:
        of = [row for row in rows if row[1] == "allreduce" and row[2] == nbytes]
        ranks = [row[0] * EACH for row in of]
        left.plot(ranks, [row[3] for row in of], "o-", label=NAMES[nbytes])
        least = [bound("allreduce", row[0], nbytes) for row in of]
        left.plot(ranks, least, ":", color="gray")
    left.set(xscale="log", yscale="log", xlabel="ranks", ylabel="seconds",
             title="hierarchical allreduce; dotted: the wire")  # fmt: skip
    left.legend(loc="lower right", bbox_to_anchor=(0.98, 0.08))
    for collective in CALLS:
        of = [each for each in planning if each[1] == collective]
        right.plot([h * EACH for h, *_ in of], [each[2] for each in of], "o-", label=collective)
    right.set(xscale="log", yscale="log", xlabel="ranks", ylabel="seconds",
              title="planning, of one rank")  # fmt: skip
    right.legend()
    figure.tight_layout()
    figure.savefig(target.with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
