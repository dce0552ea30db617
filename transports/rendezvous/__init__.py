"""How the ranks of a job find each other.

`local` is for the ranks of one host: over a Unix socket in the abstract name space, so there is no
port to collide and no file to leave behind.
"""
