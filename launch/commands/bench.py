"""`collectives bench`: how quick collectives are, beside others and the machine's limit."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.commands import CommandError
from launch.launcher_options import configure_launcher

if TYPE_CHECKING:
    from launch.bench.agenda import Agenda
    from launch.bench.places import Places
    from launch.bench.session import Session

HELP = "measure collectives, against other libraries and the machine's limit"
DESCRIPTION = """\
Measure a collective, all of them, point-to-point (p2p) or how much of an allreduce hides behind
computing (overlap), over a range of sizes:

    collectives bench allreduce -n 2
    collectives bench allreduce -n 2 --against gloo,mpi,mpi=/opt/impi/bin/python --json run.jsonl
    collectives bench all -n 4 --min 1K --max 1M --dtype bfloat16
    collectives bench train -n 2 --against ddp-gloo,sharded
    collectives bench --report run.jsonl --plot run.svg

Contenders run as rank groups of their own, all bound alike, and take turns size by size and round
by round. Each may name the Python of an environment that has it; none but mpi, gloo, nccl,
torch:BACKEND and deepspeed can be named that is not one of our algorithms (or `symmetric`: arrays
from comm.empty). ours=PYTHON races another build of this package, of before a change, say. `limit`
is the quickest way this machine has to move the bytes that must be moved: the best of memcpy,
copies past the caches and one pass over shared memory; of small messages, the time in which a flag
is seen.

With --device cuda arrays lie on GPUs, which ranks take in turn where there are fewer; those of gloo
and torch:BACKEND too. nccl's always do, and it needs a GPU for each rank. `limit` is then what
every rank's copies on its device take. COLLECTIVES_EMULATED_DEVICES=1 emulates a device.

`train` takes turns in training: a language model of 10 M parameters at 64 tokens a rank and the
example network, or what the configurations say that follow. Against it can be named ddp-gloo
(DistributedDataParallel, or over another backend: ddp-BACKEND) and our own otherwise: sharded,
bfloat16 (on the wire), one-bucket. A round lasts 2 s unless --round-ms says more.

Sizes are those of nccl-tests: the bytes of a rank's longest array, rounded up to whole elements,
and to equal parts where every rank has one; above --max they are rounded down instead, but for the
first. Every element of every result is checked, with inputs whose sums are exact. The exit
code is 1 if one was wrong."""
INTERMIXED = True

ROUND_MS = 20.0


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    add = parser.add_argument
    add("what", nargs="?", help="allreduce, …, all, p2p, overlap or train")
    add("configs", nargs="*", type=Path, metavar="CONFIG", help="what to train (YAML files)")
    add("-n", "--ranks", type=int, metavar="N", help="number of ranks (default 2)")
    configure_launcher(parser)
    add("--transport", default="auto", choices=("auto", "mpi"), help="ours with --launcher mpi")
    add("--min", default="8", metavar="SIZE", help="least size in bytes (default 8)")
    add("--max", default="64M", metavar="SIZE", help="largest size (default 64M)")
    add("--factor", type=float, default=2.0, metavar="F", help="from size to size (default 2)")
    add("--device", default="cpu", metavar="D", help="of the arrays: cpu or cuda (default cpu)")
    add("--dtype", default="float32", help="of the elements (default float32)")
    add("--op", default="sum", help="of reductions (default sum)")
    add("--root", type=int, default=0, metavar="R", help="the root (default 0)")
    add(
        "--algorithm",
        default="auto",
        metavar="A,B",
        help="ours to measure: auto, names, symmetric, symmetric:NAME (default auto)",
    )
    add("--against", default="", metavar="X,Y=PYTHON", help="contenders to compare with")
    add("--places", default="out", metavar="P", help="out, in or out,in (default out)")
    add("--caches", default="hot", metavar="C", help="hot, cold or hot,cold (default hot)")
    add("--rounds", type=int, default=5, metavar="R", help="rounds of each size (default 5)")
    add(
        "--round-ms",
        type=float,
        default=ROUND_MS,
        metavar="MS",
        help="how long a round lasts, at least about (default 20)",
    )
    add("--threads", type=int, metavar="K", help="per rank (default: cores / ranks)")
    add("--no-bind", action="store_true", help="let every rank use all cores")
    add("--no-limit", action="store_true", help="do not measure the machine's limit")
    add("--json", type=Path, metavar="FILE", help="keep everything as JSON lines")
    add("--plot", type=Path, metavar="FILE", help="draw time and busbw: a .png or .svg file")
    add("--report", type=Path, nargs="+", metavar="FILE", help="Markdown tables of kept runs")
    add("--plant", type=int, default=0, metavar="K", help="spoil K elements, to see #wrong count")


def execute(arguments: argparse.Namespace) -> int:
    """Runs the benchmark, or reports on earlier runs."""
    _check_plot(arguments.plot)
    if arguments.report:
        return _report(arguments)
    places = _places(arguments)
    if arguments.what == "train":
        if arguments.device != "cpu":
            raise CommandError(
                f"train is measured with --device cpu only, found {arguments.device}"
            )
        from launch.bench.training_command import bench_train

        return bench_train(arguments, ROUND_MS)
    if arguments.configs:
        raise CommandError(f"only `train` takes files, found {arguments.configs[0]}")
    from launch.bench.contenders import NotPythonError
    from launch.bench.session import BenchError, Manner, Session, open_record
    from launch.commands.algorithms import console_on_stdout

    agenda, against = _agenda(arguments)
    devices = _devices(arguments.device, agenda)
    manner = Manner(
        rounds=arguments.rounds,
        round_seconds=arguments.round_ms / 1e3,
        threads=arguments.threads,
        bind=not arguments.no_bind,
        limit=not arguments.no_limit,
        plant=arguments.plant,
        devices=devices,
        places=places,
    )
    try:
        session = Session(agenda, against, manner, console_on_stdout())
        with ExitStack() as stack:
            record = None
            if arguments.json is not None:
                record = stack.enter_context(open_record(arguments.json))
            session.run(record)
    except (BenchError, NotPythonError) as error:
        raise CommandError(str(error)) from error
    if arguments.plot is not None:
        from launch.bench.plot import draw_results

        draw_results(session.results, arguments.plot)
        print(f"\nthe plot is {arguments.plot}")
    return _exit_code(session)


def _places(arguments: argparse.Namespace) -> Places | None:
    """Where ranks run that an mpiexec starts; how many there are then is known."""
    from launch.bench.places import Places
    from launch.launcher_options import read_launcher

    if arguments.launcher == "local" and arguments.transport != "auto":
        raise CommandError(f"--transport {arguments.transport} expected --launcher mpi")
    try:
        ranks, start = read_launcher(arguments)
    except ValueError as error:
        raise CommandError(str(error)) from None
    arguments.ranks = 2 if ranks is None else ranks
    if start is None:
        return None
    if arguments.device != "cpu" or arguments.what == "train":
        raise CommandError("--launcher mpi measures collectives in host memory only")
    places = Places(start, arguments.transport)
    print(f"collectives: {places.describe(arguments.ranks)}")
    return places


def _agenda(arguments: argparse.Namespace) -> tuple[Agenda, list[str]]:
    from launch.bench.agenda import algorithm_names, check_variant, parse_agenda
    from launch.bench.contenders import is_foreign, unknown_contender
    from launch.commands.explain import parse_bytes
    from launch.jobs import check_counts

    against = [word.strip() for word in arguments.against.split(",") if word.strip()]
    try:
        if arguments.what is None:
            raise ValueError("expected what to measure, such as allreduce; found nothing")
        check_counts(arguments.ranks, arguments.threads)
        for option, number in (("--rounds", arguments.rounds), ("--round-ms", arguments.round_ms)):
            if not 0 < number < float("inf"):
                raise ValueError(f"{option} must be positive, found {number:g}")
        if arguments.plant < 0:
            raise ValueError(f"--plant must not be negative, found {arguments.plant}")
        agenda = parse_agenda(
            what=arguments.what,
            ranks=arguments.ranks,
            least=_size("--min", arguments.min, parse_bytes),
            most=_size("--max", arguments.max, parse_bytes),
            factor=arguments.factor,
            dtype=arguments.dtype,
            op=arguments.op,
            places=arguments.places,
            caches=arguments.caches,
            algorithms=arguments.algorithm,
            root=arguments.root,
        )
        for spec in against:
            if not is_foreign(spec):
                try:
                    check_variant(spec, agenda.collectives)
                except ValueError:
                    known = algorithm_names(agenda.collectives)
                    raise ValueError(unknown_contender(spec, known)) from None
    except ValueError as error:
        raise CommandError(str(error)) from None
    return agenda, against


def _devices(word: str, agenda: Agenda) -> tuple[str, ...]:
    """The devices to measure on; none where arrays lie in host memory."""
    from launch.bench.devices import CUDA, check_device, check_on_devices, find_devices

    try:
        check_device(word)
        if word != CUDA:
            return ()
        check_on_devices(agenda)
        return find_devices()
    except ValueError as error:
        raise CommandError(str(error)) from None


def _size(option: str, text: str, parse: Any) -> int:
    try:
        return int(parse(text))
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from None


def _check_plot(path: Path | None) -> None:
    """Refuses a plot that could not be drawn, before anything is measured."""
    import importlib.util

    if path is None:
        return
    if path.suffix not in (".png", ".svg"):
        raise CommandError(f"--plot: expected a .png or .svg file, found {path}")
    if not path.absolute().parent.is_dir():
        raise CommandError(f"--plot: no folder {path.absolute().parent}")
    if importlib.util.find_spec("matplotlib") is None:
        raise CommandError(
            "--plot needs matplotlib, which is not installed: "
            "pip install 'collectives-runtime[train]' (or matplotlib alone)"
        )


def _report(arguments: argparse.Namespace) -> int:
    from launch.bench.markdown import markdown_report
    from launch.bench.results import read_results
    from launch.bench.training_results import is_training, training_markdown

    trained = [path for path in arguments.report if is_training(path)]
    if trained and arguments.plot is not None:
        raise CommandError(f"--plot: training has no plot, and {trained[0]} is of training")
    try:
        runs = [read_results(path) for path in arguments.report if path not in trained]
    except ValueError as error:
        raise CommandError(str(error)) from None
    print(
        "\n\n".join([*([markdown_report(runs)] if runs else []), *map(training_markdown, trained)])
    )
    if arguments.plot is not None:
        from launch.bench.plot import draw_results

        draw_results([result for _, results in runs for result in results], arguments.plot)
    return 0


def _exit_code(session: Session) -> int:
    wrong = any(result.wrong for result in session.results)
    broken = any(result.role == "ours" and result.problem for result in session.results)
    return int(wrong or broken or bool(session.lost))
