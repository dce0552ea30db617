"""Collectives among devices: plans as work of streams, on memory that ranks map of each other."""
