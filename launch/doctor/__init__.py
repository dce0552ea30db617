"""What `collectives doctor` looks at: a file for each kind of thing, and how they are asked.

A check is a function that returns findings. What may hang, crash or be heavy (the native module,
MPI libraries, GPU drivers) is asked in a process of its own; the checks themselves have threads of
their own and a time limit, so that each comes to a line of the report whatever it meets.
"""
