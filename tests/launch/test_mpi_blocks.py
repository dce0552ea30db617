"""Blocks come through an mpiexec whole, whatever it mixes them with."""

from __future__ import annotations

import random

import pytest

from launch.mpi_blocks import BLOCK, LARGEST, Block, BlockReader, Kind, write_blocks

TOKEN = "0123456789abcdef"


def read(data: bytes, cuts: list[int]) -> tuple[list[Block], bytes]:
    """Blocks and text of what comes in pieces."""
    reader = BlockReader(TOKEN)
    blocks, text = [], b""
    for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        for piece in reader.feed(data[begin:end]):
            if isinstance(piece, Block):
                blocks.append(piece)
            else:
                text += piece
    return blocks, text + reader.finish()


@pytest.mark.parametrize("size", [0, 1, LARGEST - 1, LARGEST, LARGEST + 1, 5 * LARGEST + 7])
def test_what_is_written_is_read(size):
    data = random.Random(size).randbytes(size)
    written = write_blocks(TOKEN, Kind.OUT, 1234567, data)
    assert len(written) % BLOCK == 0
    blocks, text = read(written, [])
    assert b"".join(block.payload for block in blocks) == data
    assert all((block.kind, block.rank) == (Kind.OUT, 1234567) for block in blocks)
    assert text == b""


def test_blocks_are_found_in_pieces_between_other_text():
    source = random.Random(0)
    for _ in range(200):
        data, told, said = b"", [], b""
        for _ in range(source.randrange(6)):
            if source.random() < 0.5:
                word = source.choice(
                    [b"error\n", b"\x1e", b"\x1e0123", b"", b"\x1e" + TOKEN.encode()]
                )
                # What only looks like a beginning is text once it is known to go on otherwise.
                data, said = data + word + b".", said + word + b"."
            else:
                block = Block(source.choice(list(Kind)), source.randrange(9), source.randbytes(9))
                data += write_blocks(TOKEN, block.kind, block.rank, block.payload)
                told.append(block)
        # A beginning that looks right takes a block's length to be seen through.
        data, said = data + b"." * BLOCK, said + b"." * BLOCK
        cuts = sorted(source.randrange(len(data) + 1) for _ in range(source.randrange(5)))
        assert read(data, cuts) == (told, said)


def test_blocks_of_another_job_are_text():
    other = write_blocks("f" * 16, Kind.ERR, 0, b"x")
    assert read(other, [100]) == ([], other)
