"""The catalogue is whole, its names are found, and its neighbours and trees are what they say."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

from collectives.algorithms import neighbours, trees
from collectives.catalogue import CATALOGUE, find, names
from collectives.proof import verify
from collectives.selection import default_table
from collectives.specs import SPECS

DEMANDED = {
    "allreduce": {
        "ring",
        "tree",
        "double_binary_tree",
        "recursive_doubling",
        "halving_doubling",
        "one_shot",
        "two_shot",
        "linear",
        "one_sided",
        "hierarchical",
    },
    "reduce": {"ring", "tree", "chain", "one_sided", "hierarchical"},
    "broadcast": {"ring", "tree", "chain", "one_sided", "hierarchical"},
    "reduce_scatter": {"ring", "tree", "halving", "linear", "one_sided", "hierarchical"},
    "allgather": {"ring", "tree", "recursive_doubling", "bruck", "one_sided", "hierarchical"},
    "gather": {"ring", "tree", "linear", "one_sided"},
    "scatter": {"ring", "tree", "linear"},
    "alltoall": {"pairwise", "ring", "bruck", "tree", "one_sided"},
    "barrier": {"ring", "tree", "dissemination", "hierarchical"},
}

SIZES = [*range(1, 35), 63, 64, 65, 100]


def test_every_demanded_algorithm_is_there():
    assert set(DEMANDED) == set(SPECS)
    for collective, wanted in DEMANDED.items():
        assert wanted <= set(names(collective))


def test_keys_fit_and_second_names_are_the_same_algorithm():
    seconds = {}
    for (collective, name), algo in CATALOGUE.items():
        assert algo.collective == collective
        if algo.name != name:
            seconds[collective, name] = algo.name
    assert seconds == {
        ("broadcast", "ring"): "chain",
        ("reduce", "ring"): "chain",
        ("alltoall", "ring"): "pairwise",
        ("alltoall", "tree"): "bruck",
    }


def test_every_algorithm_says_what_it_does_and_where_it_is_from():
    for (collective, name), algo in CATALOGUE.items():
        assert algo.sizes is None, f"{collective} {name} must be for every size"
        assert algo.source and algo.cost and algo.messages and algo.volume
        assert inspect.getdoc(algo.body)
        assert algo.widest is not None


def test_one_sided_algorithms_are_called_so_and_the_table_says_so():
    for algo in CATALOGUE.values():
        assert algo.one_sided == (algo.name == "one_sided")
    for row in default_table().rows:
        assert row.symmetric == (row.algorithm == "one_sided")


def test_find_gives_the_algorithm():
    assert find("allreduce", "ring") is CATALOGUE["allreduce", "ring"]
    assert find("alltoall", "tree").name == "bruck"


def test_an_unknown_algorithm_is_refused_with_the_list_and_the_nearest():
    with pytest.raises(ValueError, match=r"'rang' for gather; expected one of ring, tree, linear"):
        find("gather", "rang")
    with pytest.raises(ValueError, match=r"did you mean dissemination\?"):
        find("barrier", "disemination")


def test_an_unknown_collective_is_refused():
    with pytest.raises(ValueError, match=r"unknown collective 'gathr'.*did you mean gather\?"):
        names("gathr")


def test_the_catalogue_cannot_be_changed():
    with pytest.raises(TypeError):
        CATALOGUE["allreduce", "mine"] = find("allreduce", "ring")


def test_importing_the_catalogue_imports_no_numpy():
    code = "import sys, collectives.catalogue; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_reduction_has_an_algorithm_that_folds_in_rank_order():
    for collective in ("allreduce", "reduce", "reduce_scatter"):
        for size in (1, 2, 3, 5, 8):
            kept = [name for name in names(collective)
                    if verify(find(collective, name), size).rank_order]  # fmt: skip
            assert "linear" in kept and "one_sided" in kept, (collective, size)
    assert not verify(find("reduce_scatter", "pairwise"), 3).rank_order
    assert not verify(find("allreduce", "ring"), 3).rank_order


@pytest.mark.parametrize("size", [*range(1, 10), 13, 16])
def test_the_widest_message_is_as_stated(size):
    for algo in CATALOGUE.values():
        assert algo.widest_message(size) == verify(algo, size, size // 2 * algo.spec.rooted).widest


def test_a_ring_closes():
    assert neighbours.ring_neighbours(0, 5) == (4, 1)
    assert neighbours.ring_neighbours(4, 5) == (3, 0)
    assert neighbours.others(2, 4) == [3, 0, 1]
    assert neighbours.others(0, 1) == []


def test_doubling_distances():
    assert list(neighbours.doubling_distances(1)) == []
    assert list(neighbours.doubling_distances(4)) == [1, 2]
    assert list(neighbours.doubling_distances(5)) == [1, 2, 4]


def test_the_largest_power_of_two():
    assert [neighbours.largest_power(n) for n in range(1, 9)] == [1, 2, 2, 4, 4, 4, 4, 8]


@pytest.mark.parametrize("size", SIZES)
def test_a_core_stands_for_every_rank_once(size):
    core = neighbours.Core(size)
    assert core.members + core.guests == size
    standing = [core.stands_for(member) for member in range(core.members)]
    assert [rank for group in standing for rank in group] == list(range(size))
    for rank in range(size):
        host, guest = core.host_of(rank), core.guest_of(rank)
        if host is None:
            assert core.rank(core.member(rank)) == rank
        else:
            assert core.guest_of(host) == rank and guest is None
        if guest is not None:
            assert core.host_of(guest) == rank


@pytest.mark.parametrize("size", SIZES)
def test_the_binomial_tree_is_one_tree(size):
    depth = {0: 0}
    for place in range(1, size):
        above = trees.binomial_parent(place)
        depth[place] = depth[above] + 1
        assert place in trees.binomial_children(above, size)
    for place in range(size):
        below = trees.binomial_children(place, size)
        assert all(trees.binomial_parent(child) == place for child in below)
        assert below == sorted(below, reverse=True)
        runs = [place, *(p for child in below for p in trees.binomial_subtree(child, size))]
        assert sorted(runs) == list(trees.binomial_subtree(place, size))
    assert max(depth.values()) <= (size - 1).bit_length()
    assert len(trees.binomial_children(0, size)) == (size - 1).bit_length()
    subtrees = [len(trees.binomial_subtree(place, size)) for place in range(1, size)]
    assert trees.widest_subtree(size) == max(subtrees, default=0)


@pytest.mark.parametrize("size", SIZES)
def test_the_inorder_tree_is_one_tree_whose_odd_places_are_leaves(size):
    reached = {0}
    frontier = [0]
    depth = 0
    while frontier:
        frontier = [c for place in frontier for c in trees.inorder_children(place, size)]
        assert not reached & set(frontier)
        reached |= set(frontier)
        depth += bool(frontier)
    assert reached == set(range(size))
    assert depth <= (size - 1).bit_length()
    for place in range(size):
        for child in trees.inorder_children(place, size):
            assert trees.inorder_parent(child, size) == place
        assert len(trees.inorder_children(place, size)) <= 2
        if place % 2:
            assert trees.inorder_children(place, size) == []


@pytest.mark.parametrize("size", SIZES)
def test_hardly_a_rank_works_in_both_trees(size):
    assert sorted(trees.twin_place(rank, size) for rank in range(size)) == list(range(size))
    busy = []
    for rank in range(size):
        assert trees.twin_rank(trees.twin_place(rank, size), size) == rank
        first = trees.inorder_children(rank, size)
        second = trees.inorder_children(trees.twin_place(rank, size), size)
        if first and second:
            busy.append(rank)
    assert len(busy) <= 1


def test_places_are_counted_from_the_root():
    assert [trees.place_of(rank, 4, root=3) for rank in range(4)] == [1, 2, 3, 0]
    for rank in range(4):
        assert trees.rank_at(trees.place_of(rank, 4, 3), 4, 3) == rank
