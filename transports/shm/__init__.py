"""The transport over shared memory: the memory that ranks share, and a rank's place in it."""
