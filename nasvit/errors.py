"""Every error that is the user's to mend: one message, no traceback (DESIGN section 7)."""

from __future__ import annotations

from collections.abc import Sequence


def first_of(names: Sequence[str], *, most: int, between: str = ", ") -> str:
    """`a, b and 7 more`: what a message lists of many."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{between.join(names[:most])}{more}"


class NasvitError(Exception):
    """Base of all errors that nasvit raises on purpose; `exit_code` is what the command line returns."""

    exit_code = 1


class ConfigError(NasvitError):
    """The input is wrong: an unknown key, a wrong type, an impossible combination."""

    exit_code = 2


class ArchError(ConfigError):
    """An architecture that cannot be built; the message names stage and block."""


class DataError(ConfigError):
    """A data set that cannot be used."""


class MeasurementError(NasvitError):
    """A measurement that cannot be trusted, or could not be made."""


class UnstableError(MeasurementError):
    """A latency that stayed noisy or drifting up to the bound of attempts: another moment may be calmer. seconds: what they took."""

    seconds = 0.0


class ResourceError(MeasurementError):
    """The machine is at its end (memory, disk), and the network that met it is not to blame: nothing is to be concluded of it."""


class DeviceLostError(MeasurementError):
    """A device that hung or answered nonsense time after time; it is asked no more. latency: the name of what it measures in a search."""

    latency = ""


class UnsupportedOpError(NasvitError):
    """An operation whose cost is not known; the message names module and operation."""


class TrainingError(NasvitError):
    """A training that cannot go on, for example because the loss is not finite."""


class CheckpointError(NasvitError):
    """A checkpoint that cannot be read, or does not fit the model; the message names the tensors."""

    exit_code = 2


class RunError(NasvitError):
    """A run directory that is missing, damaged, or belongs to another search."""


class StorageError(RunError):
    """The run directory cannot be written, as on a full disk: no trial is to blame, the search ends and can be resumed."""
