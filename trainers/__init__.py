"""Data-parallel training of models, built on `collectives` only.

A run is a task (what is trained, on what, how it is judged) and the settings every task shares.
`collectives train CONFIG -n N` starts `python -m trainers CONFIG` on N ranks.
"""
