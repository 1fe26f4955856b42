"""Every error this package raises on purpose: typed, and saying what to do next.

All of them are a `TextGymError`; each is also the built-in or Gymnasium error that a
caller who has never heard of this package would catch.
"""

from gymnasium import error as gym_error

LONGEST_MESSAGE = 500
_LEFT_OUT = " [...] "


class TextGymError(Exception):
    """The base of every error raised on purpose.

    A message of more than 500 characters loses its middle: what is wrong comes first, and what to do last.

    >>> len(str(TextGymError("a" * 1000)))
    500
    """

    def __init__(self, message: str = "") -> None:
        """Take the message."""
        if len(message) > LONGEST_MESSAGE:
            end = LONGEST_MESSAGE // 3
            message = message[: LONGEST_MESSAGE - len(_LEFT_OUT) - end] + _LEFT_OUT + message[-end:]
        super().__init__(message)


class UnknownNameError(TextGymError, ValueError):
    """A task, a reward or an option that nobody registered."""


class OptionError(TextGymError, ValueError):
    """An argument whose value is invalid, or does not fit the others."""


class UnknownOptionError(OptionError, TypeError):
    """An argument that nothing takes; a TypeError too, as of any function."""


class RenderModeError(OptionError, TypeError):
    """A render mode that is not available; a TypeError too, because Stable-Baselines3 then tries without."""


class DataError(TextGymError, ValueError):
    """A file that is missing, empty, or does not say what it should."""


class TaskError(TextGymError, ValueError):
    """A task that lacks what is asked of it, or whose parts do not fit together."""


class RewardError(TextGymError, ValueError):
    """A reward that cannot be called, or that returned something unusable."""


class RewardTimeoutError(RewardError, TimeoutError):
    """A reward that took longer than reward_timeout."""


class MaskError(TextGymError, ValueError):
    """A constraint that fails, whose mask has the wrong form, or that allows nothing."""


class TrainingError(TextGymError, ArithmeticError):
    """A model whose numbers are no longer finite."""


class RunError(TextGymError, RuntimeError):
    """A run that failed by itself: a disk that is full, a folder that is gone, an agent of the user's own."""


class InvalidActionError(TextGymError, gym_error.InvalidAction):
    """An action outside the action space."""


class ResetNeededError(TextGymError, gym_error.ResetNeeded):
    """A step before the first reset, or after the end of an episode."""


class DependencyError(TextGymError, ImportError):
    """A library that only this feature needs, and that is not installed."""


class SlowRewardWarning(UserWarning):
    """A reward that takes longer than everything else in learning."""
