"""The model machine, event by event.

A message of b bytes occupies its sender's way out and its receiver's way in for alpha + b beta
seconds, both at once; if it is reduced, the way in for b gamma more. Both ways at once are free,
two messages one way are not. A rank goes on as soon as it has posted; it goes on from a take when
all its messages have come and been reduced.

Messages leave in the order of the posts and enter in the order of the takes; within one post to
several, or one take from several, whichever can go goes, the one posted first before others. That
order leaves nothing to chance: the time is the longest path through the schedules.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from heapq import heapify, heappop, heappush
from typing import Any, TypeAlias

from collectives.closed_form import Number
from collectives.cost.actions import Action, End, Kind, Programs
from collectives.cost.links import Link, Links


@dataclass(slots=True)
class Hop:
    """A message, or work of one rank, and when.

    Attributes:
        kind: POST for a message, WORK for work.
        source: who sends, or works.
        target: who receives, or works.
        step: index of the step at the source.
        chunks: how many chunks it carries.
        moved: chunks of work that were moved.
        reduced: chunks that were reduced.
        begin: when it began.
        sent: when the source's way out was free again.
        end: when the target had it, reduced.
        cause: the hop that it waited for, if any.
    """

    kind: Kind
    source: int
    target: int
    step: int
    chunks: int
    moved: int
    reduced: int
    begin: Number
    sent: Number
    end: Number
    cause: Hop | None


_Offer: TypeAlias = tuple[Number, int, int, int]
"""A message that may enter: when it was posted, its place in the post, who sends, the key."""


@dataclass(slots=True)
class _Post:
    """A post whose messages have not all left."""

    when: Number
    step: int
    chunks: int
    left: dict[End, int]  # end -> its place among the peers
    cause: Hop | None
    offered: bool = False


@dataclass(slots=True)
class _Take:
    """A take whose messages have not all come."""

    action: Action
    awaited: dict[int, int]  # key -> who sends
    last: Hop | None = None


@dataclass(slots=True)
class _Node:
    """One rank while the machine runs."""

    program: Sequence[Action]
    takes: deque[_Take]  # in order; the first is being served
    complete: deque[Hop | None] = field(default_factory=deque)  # the last hop of each take
    posts: deque[_Post] = field(default_factory=deque)  # in order; the first is leaving
    ready: list[_Offer] = field(default_factory=list)
    at: int = 0
    clock: Number = Fraction(0)
    cause: Hop | None = None
    out_busy: bool = False
    in_busy: bool = False
    last_out: Hop | None = None
    last_in: Hop | None = None


class Stuck(ValueError):
    """Some message is never taken, or never sent: these are no schedules of one collective."""


def run_machine(programs: Programs, links: Links, share: Number) -> list[Hop]:
    """All hops, in the order in which they were begun; a chunk has `share` bytes.

    Raises:
        Stuck: the schedules do not fit together.
    """
    return _Machine(programs, links, share).run()


class _Machine:
    def __init__(self, programs: Programs, links: Links, share: Number) -> None:
        self._links = links
        self._hosts = programs.hosts
        self._share = share
        self._nodes = [
            _Node(program, deque(_take(each) for each in program if each.kind is Kind.TAKE))
            for program in programs.of
        ]
        self._now: Number = Fraction(0)
        self._hops: list[Hop] = []
        # When, a number that tells those at once apart, what happens, and to what.
        self._events: list[tuple[Number, int, Callable[[Any], None], Any]] = []
        self._count = 0
        self._looked_at: set[int] = set()  # receivers whose way in may have something to do

    def run(self) -> list[Hop]:
        for number in range(len(self._nodes)):
            self._go_on(number)
        self._start_all()
        while self._events:
            self._now = self._events[0][0]
            while self._events and self._events[0][0] == self._now:
                _, _, happens, to = heappop(self._events)
                happens(to)
            self._start_all()
        for number, node in enumerate(self._nodes):
            if node.posts or node.at < len(node.program):
                what = "sends what nobody takes" if node.posts else "waits for what nobody sends"
                step = node.posts[0].step if node.posts else node.at
                raise Stuck(f"rank {number} {what}, at step {step}")
        return self._hops

    def _at(self, when: Number, happens: Callable[[Any], None], to: Any) -> None:
        self._count += 1
        heappush(self._events, (when, self._count, happens, to))

    def _go_on(self, number: int) -> None:
        """Let a rank do what it can: post, work, and go past complete takes."""
        node = self._nodes[number]
        while node.at < len(node.program):
            action = node.program[node.at]
            if action.kind is Kind.POST:
                left = {end: place for place, end in enumerate(action.ends)}
                node.posts.append(_Post(node.clock, node.at, action.chunks, left, node.cause))
                if node.clock > self._now:
                    self._at(node.clock, self._offer, number)
                else:
                    self._offer(number)
            elif action.kind is Kind.WORK:
                self._work(number, node, action)
            elif node.complete:
                last = node.complete.popleft()
                if last is not None and last.end > node.clock:
                    node.clock, node.cause = last.end, last
            else:
                return
            node.at += 1

    def _work(self, number: int, node: _Node, action: Action) -> None:
        seconds: Number = Fraction(0)
        for end in action.ends or (End(number, 0),):
            link = self._links.link(end.node, number)
            nbytes = action.chunks * self._share
            seconds += nbytes * (action.moves * link.beta + action.reduces * link.gamma)
        times = action.chunks * max(1, len(action.ends))
        done = node.clock + seconds
        hop = Hop(Kind.WORK, number, number, node.at, action.chunks, action.moves * times,
                  action.reduces * times, node.clock, done, done, node.cause)  # fmt: skip
        node.clock, node.cause = done, hop
        self._hops.append(hop)

    def _offer(self, number: int) -> None:
        """Tell the receivers of the oldest post, if it is time for it."""
        posts = self._nodes[number].posts
        if not posts or posts[0].offered or posts[0].when > self._now:
            return
        posts[0].offered = True
        for end, place in posts[0].left.items():
            receiver = self._nodes[end.node]
            if receiver.takes and end.key in receiver.takes[0].awaited:
                heappush(receiver.ready, (posts[0].when, place, number, end.key))
                self._looked_at.add(end.node)

    def _ask(self, number: int) -> None:
        """Look which messages of the oldest incomplete take could come."""
        node = self._nodes[number]
        if not node.takes:
            return
        for key, source in node.takes[0].awaited.items():
            posts = self._nodes[source].posts
            if posts and posts[0].offered:
                place = posts[0].left.get(End(number, key))
                if place is not None:
                    heappush(node.ready, (posts[0].when, place, source, key))

    def _start_all(self) -> None:
        """Begin every message whose ways are free, the one posted first before others."""
        best = [offer for number in self._looked_at if (offer := self._best(number))]
        self._looked_at.clear()
        heapify(best)
        while best:
            when, place, source, key, target = heappop(best)
            if self._nodes[source].out_busy:
                heappush(self._nodes[target].ready, (when, place, source, key))
                if offer := self._best(target):
                    heappush(best, offer)
            else:
                self._start(source, target, key)

    def _best(self, number: int) -> tuple[Number, int, int, int, int] | None:
        """What is to enter this rank next, if anything can now; it is no longer ready then."""
        node = self._nodes[number]
        if node.in_busy:
            return None
        aside: list[_Offer] = []
        found = None
        while node.ready and found is None:
            offer = heappop(node.ready)
            if self._nodes[offer[2]].out_busy:
                aside.append(offer)
            else:
                found = (*offer, number)
        for offer in aside:
            heappush(node.ready, offer)
        return found

    def _start(self, source: int, target: int, key: int) -> None:
        sender, receiver = self._nodes[source], self._nodes[target]
        post, take = sender.posts[0], receiver.takes[0]
        link = self._link(source, target, key)
        nbytes = post.chunks * self._share
        sent = self._now + link.alpha + nbytes * link.beta
        end = sent + take.action.reduces * nbytes * link.gamma
        hop = Hop(Kind.POST, source, target, post.step, post.chunks, post.chunks,
                  take.action.reduces * post.chunks, self._now, sent, end,
                  self._cause(sender, receiver))  # fmt: skip
        del post.left[End(target, key)], take.awaited[key]
        take.last = hop
        sender.out_busy = receiver.in_busy = True
        sender.last_out = receiver.last_in = hop
        self._hops.append(hop)
        self._at(sent, self._has_left, hop)
        self._at(end, self._has_ended, hop)

    def _link(self, source: int, target: int, key: int) -> Link:
        if not self._hosts:
            return self._links.link(source, target)
        return self._links.level(key % self._hosts != 0)

    def _cause(self, sender: _Node, receiver: _Node) -> Hop | None:
        """What a message that begins now has waited for."""
        post = sender.posts[0]
        if post.cause is not None and post.when == self._now:
            return post.cause
        if sender.last_out is not None and sender.last_out.sent == self._now:
            return sender.last_out
        return receiver.last_in

    def _has_left(self, hop: Hop) -> None:
        sender = self._nodes[hop.source]
        sender.out_busy = False
        if sender.posts[0].left:
            self._looked_at.update(end.node for end in sender.posts[0].left)
        else:
            sender.posts.popleft()
            self._offer(hop.source)

    def _has_ended(self, hop: Hop) -> None:
        receiver = self._nodes[hop.target]
        receiver.in_busy = False
        self._looked_at.add(hop.target)
        if not receiver.takes[0].awaited:
            receiver.complete.append(receiver.takes.popleft().last)
            self._ask(hop.target)
            self._go_on(hop.target)


def _take(action: Action) -> _Take:
    return _Take(action, {end.key: end.node for end in action.ends})
