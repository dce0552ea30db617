"""Hosts as users write them: read, checked, and the ranks shared out among them."""

from __future__ import annotations

import pytest

from launch.hosts import Host, first_of_nodes, parse_hosts, read_hostfile, share_ranks


def test_hosts_are_read_from_an_option():
    assert parse_hosts("a:4,b") == [Host("a", 4), Host("b")]
    assert parse_hosts("me@node-1.site, 10.0.0.2:1") == [
        Host("me@node-1.site"),
        Host("10.0.0.2", 1),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"expected HOST or HOST:RANKS, as in a:4,b:4, found ''"),
        ("a,,b", "found ''"),
        ("a:four", "found 'a:four'"),
        ("a b", "found 'a b'"),
        ("a:0", "--hosts: a must take at least one rank, found 0"),
        ("a:2,b,a", "--hosts: a is named 2 times, expected once"),
    ],
)
def test_what_is_no_list_of_hosts_is_refused(text, words):
    with pytest.raises(ValueError, match=words):
        parse_hosts(text)


def test_hosts_are_read_from_a_file(tmp_path):
    file = tmp_path / "hosts"
    file.write_text("# ours\n\na:4   # the big one\nb slots=2\n  c\n")
    assert read_hostfile(file) == [Host("a", 4), Host("b", 2), Host("c")]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "hosts: cannot be read: No such file or directory"),
        (b"\xff\xfe", "hosts: cannot be read: it is no text"),
        (b"# nobody\n", "hosts: expected a host on a line, found none"),
        (b"a\nb cores=3\n", "hosts:2: expected HOST, HOST:RANKS or HOST slots=RANKS: 'b cores=3'"),
        (b"a slots=0\n", "hosts:1: a must take at least one rank, found 0"),
        (b"a\na:2\n", "hosts: a is named 2 times"),
    ],
)
def test_what_is_no_file_of_hosts_is_refused(tmp_path, content, words):
    file = tmp_path / "hosts"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read_hostfile(file)


def test_ranks_are_shared_out():
    named = [Host("a", 4), Host("b", 2)]
    assert share_ranks(named, None) == share_ranks(named, 6) == named
    assert share_ranks([Host("a"), Host("b"), Host("c")], 8) == [
        Host("a", 3), Host("b", 3), Host("c", 2),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("hosts", "ranks", "words"),
    [
        ("a:4,b:4", 7, r"-n is 7, but the hosts take 4 \+ 4 = 8: expected the same"),
        ("a:4,b,c", 8, "says how many ranks it takes or none does: b, c do not, others do"),
        ("a,b", None, "expected -n RANKS, or hosts that say how many"),
        ("a,b,c", 2, "expected a rank for each host, found 2 for 3 hosts"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(hosts, ranks, words):
    with pytest.raises(ValueError, match=words):
        share_ranks(parse_hosts(hosts), ranks)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node7", "node7"),
        ("gpu[003-007,9],b", "gpu003"),
        ("a,b[1-2]", "a"),
        ("rack2-n[12,14]-ib", "rack2-n12-ib"),
    ],
)
def test_the_first_host_of_an_allocation_is_found(nodes, first):
    assert first_of_nodes(nodes) == first


def test_an_allocation_without_hosts_is_refused():
    with pytest.raises(ValueError, match=r"expected hosts, as in node\[1-4\], found ''"):
        first_of_nodes("")
