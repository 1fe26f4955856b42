"""Exceptions of this package.

Every exception is a `TextGymError`. Each also derives from the built-in or Gymnasium exception
of the same meaning, so that generic code can catch it.
"""

from gymnasium import error as gym_error

LONGEST_MESSAGE = 500
_LEFT_OUT = " [...] "


class TextGymError(Exception):
    """Base class of the exceptions of this package.

    Messages are limited to 500 characters. A longer message is cut in the middle, because it begins with what is
    wrong and ends with what to do.

    >>> len(str(TextGymError("a" * 1000)))
    500
    """

    def __init__(self, message: str = "") -> None:
        """Store the message, shortened if necessary."""
        if len(message) > LONGEST_MESSAGE:
            end = LONGEST_MESSAGE // 3
            message = message[: LONGEST_MESSAGE - len(_LEFT_OUT) - end] + _LEFT_OUT + message[-end:]
        super().__init__(message)


class UnknownNameError(TextGymError, ValueError):
    """Unknown name of a task, reward, agent or module."""


class OptionError(TextGymError, ValueError):
    """Invalid value of an argument, or a value that contradicts another argument."""


class UnknownOptionError(OptionError, TypeError):
    """Unknown keyword argument; also a TypeError, which Python raises for unknown arguments."""


class RenderModeError(OptionError, TypeError):
    """Unknown render mode; also a TypeError, because Stable-Baselines3 then retries without a render mode."""


class DataError(TextGymError, ValueError):
    """A missing or empty file, or data in an unexpected format."""


class TaskError(TextGymError, ValueError):
    """A task without a requested method, or with inconsistent parts."""


class RewardError(TextGymError, ValueError):
    """A reward that does not fit the task, raised an exception, or returned invalid scores."""


class RewardTimeoutError(RewardError, TimeoutError):
    """A reward exceeded reward_timeout."""


class MaskError(TextGymError, ValueError):
    """A constraint raised an exception or returned an invalid mask, or a mask allows no token."""


class TrainingError(TextGymError, ArithmeticError):
    """A loss, a weight or a logit of a model is not finite."""


class RunError(TextGymError, RuntimeError):
    """A run failed for a reason outside its arguments: a full disk, a deleted folder, an error in a custom agent."""


class InvalidActionError(TextGymError, gym_error.InvalidAction):
    """The action is not in the action space."""


class ResetNeededError(TextGymError, gym_error.ResetNeeded):
    """The call needs a running episode: reset() was never called, or the episode is over."""


class DependencyError(TextGymError, ImportError):
    """An optional dependency is not installed."""


class SlowRewardWarning(UserWarning):
    """Most of the training time is spent in the reward."""
