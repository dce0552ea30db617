"""Pictures show each algorithm's rounds in text that stays readable at any size."""

from __future__ import annotations

import pytest

from collectives.catalogue import CATALOGUE, find
from collectives.picture import draw
from collectives.schedule import algorithm, copy, notify, recv, send, wait

ALGORITHMS = {f"{a.collective} {a.name}": a for a in CATALOGUE.values()}


def picture(text):
    """A drawing as it is written below: without the indentation of this file."""
    return "\n".join(line.removeprefix("    ") for line in text.strip("\n").splitlines()).rstrip()


def test_a_ring():
    assert draw(find("allreduce", "ring"), 3) == picture("""
             round 1  round 2  round 3  round 4
    rank 0   →1 c2    →1 c1    →1 c0    →1 c2
             +←2 c1   +←2 c0   ←2 c2    ←2 c1

    rank 1   →2 c0    →2 c2    →2 c1    →2 c0
             +←0 c2   +←0 c1   ←0 c0    ←0 c2

    rank 2   →0 c1    →0 c0    →0 c2    →0 c1
             +←1 c0   +←1 c2   ←1 c1    ←1 c0

    →1 c0    send chunk 0 to rank 1
    ←1 c0    receive chunk 0 from rank 1
    +←1 c0   receive chunk 0 from rank 1 and add it to the own
    """)


def test_a_tree_with_a_root():
    assert draw(find("scatter", "tree"), 5, root=2) == picture("""
               round 1  round 2  round 3
    rank 0     ·        ·        ←4 c0
    rank 1     ←2 c1    ·        ·
    rank 2 *   →1 c1    →4 c0,4  →3 c3
    rank 3     ·        ·        ←2 c3
    rank 4     ·        ←2 c0,4  →0 c0

    →1 c0   send chunk 0 to rank 1
    ←1 c0   receive chunk 0 from rank 1
    *       the root
    """)


def test_several_peers_are_one_message():
    drawn = draw(find("broadcast", "tree"), 8)
    assert "rank 0 *   →1,2,4 c0" in drawn
    assert "→1-3 c0   to several ranks: written once, read by each" in drawn
    drawn = draw(find("allreduce", "one_shot"), 4)
    assert "→all c0" in drawn and "+←all c0" in drawn
    assert "+←1-3 c0   from several ranks: added in one pass" in drawn


def test_chunks_of_alltoall_are_pairs():
    drawn = draw(find("alltoall", "bruck"), 5)
    assert "rank 0   →1 (0,1)(0,3)" in drawn
    assert "send the chunk that goes from rank 2 to rank 3 to rank 1" in drawn
    assert "→1 (0,1)(0,3)(0,5)…" in draw(find("alltoall", "bruck"), 9)


def test_a_barrier_moves_no_chunks():
    drawn = draw(find("barrier", "dissemination"), 4)
    assert "rank 0   →1       →2\n         ←3       ←2\n" in drawn
    assert "→1   send a message to rank 1" in drawn


def test_one_rank_has_nothing_to_send():
    assert draw(find("allreduce", "ring"), 1) == "(nothing to send)"


def test_one_sided_steps_lie_between_notifies():
    assert draw(find("allreduce", "one_sided"), 3) == picture("""
             round 1   round 2   round 3
    rank 0   !all                !all
             ?all      +⇐all c0  ?all
                       ⇒all c0

    rank 1   !all                !all
             ?all      +⇐all c1  ?all
                       ⇒all c1

    rank 2   !all                !all
             ?all      +⇐all c2  ?all
                       ⇒all c2

    +⇐1 c0     read chunk 0 in the memory of rank 1 and add it to the own
    +⇐1-3 c0   of several ranks: added in one pass
    ⇒1 c0      write chunk 0 into the memory of rank 1
    ⇒1-3 c0    into that of several ranks, in one pass
    !1         notify rank 1 that all up to here is done
    ?1         wait for a notify of rank 1
    """)


def test_every_read_takes_a_round():
    assert draw(find("gather", "one_sided"), 3, root=1) == picture("""
               round 1  round 2  round 3  round 4
    rank 0     !1       ·        ·        ?1
    rank 1 *   ?all     ⇐2 c2    ⇐0 c0    !all
    rank 2     !1       ·        ·        ?1

    ⇐1 c0   read chunk 0 in the memory of rank 1
    !1      notify rank 1 that all up to here is done
    ?1      wait for a notify of rank 1
    *       the root
    """)


def test_a_notify_is_handed_on_in_a_later_round_and_one_that_never_comes_is_seen():
    @algorithm("broadcast", one_sided=True)
    def passing(rank, size, root):
        if rank > 0:
            yield wait(rank - 1)
        if rank < size - 1:
            yield notify(rank + 1)
        else:
            yield wait(0)

    assert draw(passing, 4) == picture("""
               round 1  round 2  round 3  round 4
    rank 0 *   !1       ·        ·        ·
    rank 1     ?0       !2       ·        ·
    rank 2     ·        ?1       !3       ·
    rank 3     ·        ·        ?2       ✗ ?0

    !1   notify rank 1 that all up to here is done
    ?1   wait for a notify of rank 1
    ✗    a step that the rank never gets past
    *    the root
    """)


def test_rounds_that_do_not_fit_go_below():
    wide = draw(find("allreduce", "ring"), 6, width=500)
    folded = draw(find("allreduce", "ring"), 6, width=50)
    assert max(map(len, folded.splitlines()[:-4])) <= 50
    assert wide.count("rank 5") == 1 and folded.count("rank 5   ") == 3
    heads = [line.split() for line in folded.splitlines() if "round" in line]
    assert [int(word) for words in heads for word in words if word.isdigit()] == [*range(1, 11)]


def test_many_ranks_and_rounds_are_cut_and_counted():
    drawn = draw(find("allreduce", "ring"), 40)
    assert "rank 7 " in drawn and "rank 8 " not in drawn
    assert "⋮ 32 more ranks" in drawn and "⋯ 54 more rounds" in drawn
    assert len(drawn.splitlines()) < 90
    assert "more" not in draw(find("allreduce", "ring"), 9)


@pytest.mark.parametrize("algo", ALGORITHMS.values(), ids=ALGORITHMS)
def test_every_algorithm_can_be_drawn(algo):
    for size in (1, 2, 3, 7, 9, 20):
        drawn = draw(algo, size, root=size - 1 if algo.spec.rooted else 0, width=100)
        assert "✗" not in drawn
        assert size == 1 or "round 1" in drawn
        assert all(line == line.rstrip() for line in drawn.splitlines())
        assert all(len(line) <= 100 for line in drawn.splitlines())


@pytest.mark.parametrize("name, rounds", [("ring", 14), ("recursive_doubling", 3), ("tree", 6)])
def test_rounds_are_the_steps_of_the_literature(name, rounds):
    drawn = draw(find("allreduce", name), 8, width=1000)
    assert f"round {rounds}" in drawn and f"round {rounds + 1}" not in drawn


def test_a_dead_lock_is_drawn_as_far_as_it_comes():
    @algorithm("allgather")
    def hasty(rank, size):
        for peer in range(size):
            if peer != rank:
                yield send(peer, chunk=rank)
        for peer in range(size):
            if peer != rank:
                yield recv(peer, chunk=peer)

    drawn = draw(hasty, 3)
    assert "rank 0   →1 c0    ✗ →2 c0" in drawn
    assert "✗       a step that the rank never gets past" in drawn


def test_a_copy_is_drawn():
    @algorithm("allreduce", chunks=2)
    def copying(rank, size):
        yield copy(0, 1)

    assert "rank 0   c0=c1" in draw(copying, 2)


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match=r"root must be in 0\.\.2, found 3"):
        draw(find("broadcast", "tree"), 3, root=3)
    with pytest.raises(ValueError, match="not written for size 0"):
        draw(find("broadcast", "tree"), 0)
