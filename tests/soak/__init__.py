"""Random programs: compared with numpy (`make soak`), and with ranks that fail (`soak-faults`).

A seed and a number of ranks make a program, the same on every rank; every result is compared with
what the definition says. What has failed is repeated by its seed.
"""
