"""The algorithms that come with the package: a file each, or a small family of relatives.

Every algorithm works for every size >= 1 and every root, and holds with a single slot a rank.
Each states, beside its body, closed forms (`collectives.closed_form`) in these terms:

    n            ranks
    s            bytes of all chunks together. So for gather, allgather, scatter and
                 reduce_scatter s is n times what one rank holds; for alltoall it is what one rank
                 sends in all, its own chunk to itself included
    messages     messages sent by the busiest rank, over all roots; to two peers counts twice.
                 Notifies are messages
    volume       bytes sent by the busiest rank, likewise, or read from and written to its peers
    cost         seconds of the critical path, chunks being equal

The cost is that of the model machine (`collectives.cost.machine`), exactly and at every size: a
message of b bytes occupies its sender's way out and its receiver's way in for alpha + b beta
seconds, and if it is reduced, the way in for b gamma more; both ways at once are free, two messages
one way are not.

A body shows the textbook; which memory a chunk lies in, how long it is, and which steps become
one pass is said elsewhere (`collectives.lowering`, `transports.plan`).
"""
