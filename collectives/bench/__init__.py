"""Measurement inside a rank: timing, rates, inputs that sum exactly, and the machine's own limit.

What starts processes and compares them lies in `launch.bench`; here everything is called by ranks
that exist already.
"""
