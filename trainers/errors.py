"""What its user can put right about a run; every message names what was expected and found."""

from __future__ import annotations


class TrainerError(Exception):
    """Something about this run that the person who started it can change."""


class ConfigurationError(TrainerError):
    """A key that does not exist, a value that does not fit, settings that contradict each other."""


class DataError(TrainerError):
    """Data that is missing, unreadable or too small."""


class CheckpointError(TrainerError):
    """A checkpoint that is missing, damaged, of something else, or that cannot be written."""


class DivergedError(TrainerError):
    """The loss is no longer a number, or ranks no longer hold the same parameters.

    Attributes:
        told_elsewhere: whether another rank raises it too, with the same text, and is to tell it.
    """

    def __init__(self, text: str, *, told_elsewhere: bool = False) -> None:
        super().__init__(text)
        self.told_elsewhere = told_elsewhere


class RecordError(TrainerError):
    """What a run is to leave beside its checkpoints cannot be written."""
