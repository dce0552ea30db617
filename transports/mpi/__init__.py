"""The transport over MPI: ranks of several hosts, each host's sharing memory."""
