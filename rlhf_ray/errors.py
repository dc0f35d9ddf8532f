"""The three kinds of failure, told apart everywhere: configuration, data, infrastructure.

Each message says what was wrong, where, and what to do. Plain exceptions with one string, so they survive Ray's
pickling.
"""


class RLHFRayError(Exception):
    """Base of every error that this package raises on purpose."""

    exit_code = 1


class ConfigError(RLHFRayError):
    """The run cannot start as written: a wrong key, value, path or resource. Fails at once, exit code 2."""

    exit_code = 2


class DataError(RLHFRayError):
    """The data, or a function applied to it, is wrong: a malformed row, a reward that raised, NaN."""

    exit_code = 2


class BadUpdate(DataError):
    """An optimiser step that was refused, raised where the learner is to go back to its last checkpoint."""


class InfrastructureError(RLHFRayError):
    """An actor, node or deadline was lost: nothing is wrong with the run itself, and it may be resumed."""

    exit_code = 3


class ActorLost(InfrastructureError):
    """An actor died, was killed because it hung, or its engine is gone: what it had in hand may be done by another."""


class DeadlineError(InfrastructureError):
    """An actor was silent for longer than it may be; it may hang for ever, as ranks do whose peer has died."""


class PlacementLost(InfrastructureError):
    """A node took reserved places along that did not come back by themselves: all actors have to be placed anew."""


class ObjectLost(InfrastructureError):
    """What an actor had sent is gone, with the node that held it: it has to be made again."""


class DiskFull(InfrastructureError):
    """There is no room for what the run has to write."""


class OutOfMemory(InfrastructureError):
    """A process found no memory for what it had to do, and would find none the next time."""


class AuditError(RLHFRayError):
    """A weight sync was not what the learner sent. The run stops rather than train on stale samples."""

    exit_code = 4
