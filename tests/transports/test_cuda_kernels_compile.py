"""The kernels' source compiles for every GPU we name, into the instructions it is written for.

Nothing of it runs here: NVRTC needs no GPU. What the kernels compute is test_cuda_kernels.py's
affair, on the CPU.
"""

from __future__ import annotations

import re

import pytest
from harness.nvrtc import CompilationError, nvrtc_files, ptx_of

from transports import _native
from transports.cuda_ipc import kernels

ARCHITECTURES = ["sm_80", "sm_90", "sm_100"]
DTYPES = range(13)
OPS = range(10)
FLOATS = range(4)
FLOAT16, BFLOAT16, FLOAT32 = range(3)
SUM = 0

PAIRS = [(dtype, op) for dtype in DTYPES for op in OPS if _native.supports(dtype, op)]
SAMPLE = [  # each type once, each operation, each architecture
    (dtype, dtype if dtype in FLOATS else dtype - 3, ARCHITECTURES[dtype % 3]) for dtype in DTYPES
]
SWEEP = [
    (*pair, architecture)
    for pair in PAIRS
    for architecture in ARCHITECTURES
    if (*pair, architecture) not in SAMPLE
]

WIDE_LOAD = r"ld\.global\.(?:v2\.[a-z]64|v4\.[a-z]32)"
WIDE_STORE = r"st\.global\.(?:v2\.[a-z]64|v4\.[a-z]32)"


def compiled(dtype: int, op: int, architecture: str, *options: str) -> str:
    given = (*kernels.compile_options(dtype, op), *options)
    return ptx_of(kernels.source(), given, architecture)


def instructions(ptx: str) -> list[str]:
    """The instructions of both kernels, in order, without their operands."""
    return re.findall(r"^\s+(?:@!?%p\d+\s+)?([a-z][\w.:]*)\s", ptx, re.MULTILINE)


def objections(ptx: str) -> set[str]:
    """What should not be in it, or is not and should."""
    found = set(instructions(ptx))
    wanted = {
        name: any(re.fullmatch(name, instruction) for instruction in found)
        for name in (WIDE_LOAD, WIDE_STORE)
    }
    # Plain loads, of memory that other processes see; nothing that a register has no room for,
    # and no copy of the argument.
    memory = {name for name in found if re.match(r"(ld|st)\.", name)}
    plain = {name for name in memory if re.match(r"ld\.param\.|(ld|st)\.global\.", name)}
    # Every operation rounds by itself, exactly, and numbers too small to be normal stay.
    loose = {name for name in found if re.match(r"fma\.|mad\.f|.*\.(nc|ftz|approx|full)\b", name)}
    return loose | (memory - plain) | {name for name, there in wanted.items() if not there}


def check(dtype: int, op: int, architecture: str) -> None:
    ptx = compiled(dtype, op, architecture)
    entries = re.findall(r"\.visible \.entry (\w+)\(", ptx)
    assert sorted(entries) == (["divide", "fold"] if dtype in FLOATS else ["fold"])
    assert not objections(ptx)


def test_the_sample_has_every_type_operation_and_architecture() -> None:
    assert {dtype for dtype, _, _ in SAMPLE} == set(DTYPES)
    assert {op for _, op, _ in SAMPLE} == set(OPS)
    assert {architecture for _, _, architecture in SAMPLE} == set(ARCHITECTURES)
    assert {(dtype, op) for dtype, op, _ in SAMPLE} <= set(PAIRS)


@pytest.mark.parametrize(("dtype", "op", "architecture"), SAMPLE)
def test_a_pair_compiles(dtype: int, op: int, architecture: str) -> None:
    check(dtype, op, architecture)


def test_loads_of_all_operands_are_on_their_way_before_the_first_is_folded() -> None:
    """Four packets of each of two operands."""
    longest = run = 0
    for name in instructions(compiled(FLOAT32, SUM, "compute_90")):
        if re.fullmatch(WIDE_LOAD, name):
            run += 1
        elif re.match(r"add\.(rn\.)?f32|st\.|bra", name):
            run = 0
        longest = max(longest, run)
    assert longest == 8


@pytest.mark.parametrize(("dtype", "architecture", "expected"), [
    (FLOAT16, "compute_80", {"cvt.f32.f16", "cvt.rn.f16.f32"}),
    (BFLOAT16, "compute_80", {"cvt.rn.bf16.f32"}),
    (BFLOAT16, "sm_75", set()),  # which has no such instruction
])  # fmt: skip
def test_16_bit_floats_are_converted_by_the_processor(
    dtype: int, architecture: str, expected: set[str]
) -> None:
    found = set(instructions(compiled(dtype, SUM, architecture)))
    assert {name for name in found if re.match(r"cvt\..*b?f16", name)} == expected


@pytest.fixture(scope="module")
def sound_ptx() -> str:
    ptx = compiled(FLOAT16, SUM, "compute_90")
    assert not objections(ptx)
    return ptx


@pytest.mark.full
@pytest.mark.parametrize(("dtype", "op", "architecture"), SWEEP)
def test_every_pair_compiles(dtype: int, op: int, architecture: str) -> None:
    check(dtype, op, architecture)


@pytest.mark.parametrize(("plain", "wrong"), [
    ("ld.global.v2.u64", "ld.global.nc.v2.u64"),
    ("ld.global.v2.u64", "ld.v2.u64"),
    ("ld.global.v2.u64", "ld.local.v2.u64"),
    ("st.global.u16", "st.local.u16"),
    ("cvt.f32.f16", "cvt.ftz.f32.f16"),
    ("add.rn.f32", "fma.rn.f32"),
    ("div.rn.f32", "div.full.f32"),
    ("div.rn.f32", "div.approx.f32"),
])  # fmt: skip
def test_what_should_not_be_there_is_seen(sound_ptx: str, plain: str, wrong: str) -> None:
    planted = sound_ptx.replace(f"{plain} ", f"{wrong} ", 1)
    assert planted != sound_ptx
    assert objections(planted) == {wrong}


@pytest.mark.parametrize("name", ["ld.global", "st.global"])
def test_what_should_be_there_is_missed(sound_ptx: str, name: str) -> None:
    assert len(objections(re.sub(rf"{name}\.v\d\.", f"{name}.", sound_ptx))) == 1


def test_an_argument_of_another_size_is_refused() -> None:
    for struct in ("Fold", "Divide"):
        options = [
            f"-D{struct.upper()}_BYTES=1048" if f"{struct.upper()}_BYTES" in option else option
            for option in kernels.compile_options(FLOAT32, SUM)
        ]
        with pytest.raises(CompilationError, match=f"{struct}: not as large as kernels.py has it"):
            ptx_of(kernels.source(), options, "compute_80")


@pytest.mark.parametrize(("dtype", "op", "message"), [
    (FLOAT32, 4, "bitwise and logical operations are those of integers"),
    (FLOAT32, 10, r"OP: expected 0\.\.9"),
    (FLOAT32, -1, r"OP: expected 0\.\.9"),
])  # fmt: skip
def test_a_pair_that_is_none_is_refused_by_the_source(dtype: int, op: int, message: str) -> None:
    options = [
        f"-DOP={op}" if option.startswith("-DOP=") else option
        for option in kernels.compile_options(dtype, SUM)
    ]
    with pytest.raises(CompilationError, match=message):
        ptx_of(kernels.source(), options, "compute_80")


def test_the_compiler_names_the_file_and_its_line() -> None:
    lines = kernels.source().splitlines()
    at = lines.index('#line 1 "units.cuh"')
    lines[at + 3] = "nothing;"
    with pytest.raises(CompilationError, match=r"^units\.cuh\(3\): error"):
        ptx_of("\n".join(lines), kernels.compile_options(FLOAT32, SUM), "compute_80")


def test_a_missing_compiler_is_a_failure_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("harness.nvrtc.PACKAGE", "no-such-package")
    with pytest.raises(AssertionError, match="pip install no-such-package"):
        nvrtc_files()
