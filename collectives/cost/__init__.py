"""What collectives cost: a model machine for any schedule, and a model of this transport.

`simulation` runs the schedules of all ranks on a machine of messages, with alpha, beta and gamma
for each link; it says what the closed form beside an algorithm says. `shared_memory` runs the
lowered plans as the native engine does, with parameters that `collectives tune` has fitted; it
says what a call takes here. See docs/cost.md.
"""
