"""What the system says of its caches, and what it does not."""

from __future__ import annotations

from transports.caches import last_level_cache_bytes


def test_the_last_cache_is_the_largest(tmp_path):
    assert last_level_cache_bytes(tmp_path) == 64 << 20
    for index, size in enumerate(("32K", "1M", "100", "odd")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(size + "\n")
    assert last_level_cache_bytes(tmp_path) == 1 << 20
