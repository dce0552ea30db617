"""What the system says of its caches, and what it does not."""

from __future__ import annotations

from transports.caches import last_level_cache_bytes, usable_cache_bytes


def test_the_last_cache_is_the_largest(tmp_path):
    assert last_level_cache_bytes(tmp_path) == 64 << 20
    for index, size in enumerate(("32K", "1M", "100", "odd")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(size + "\n")
    assert last_level_cache_bytes(tmp_path) == 1 << 20


def test_of_a_cache_that_others_must_share_only_a_part_is_counted_on(tmp_path):
    (tmp_path / "index3").mkdir()
    (tmp_path / "index3" / "size").write_text("516096K\n")
    assert usable_cache_bytes(tmp_path, 2) == 128 << 20
    assert usable_cache_bytes(tmp_path, 120) == 516096 << 10
    assert usable_cache_bytes(tmp_path) <= last_level_cache_bytes(tmp_path)
