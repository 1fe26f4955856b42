"""How far a policy has gone from another, on what it draws itself, and the weight that holds it near."""

from __future__ import annotations

STEP, MOST = 0.1, 0.2  # of an adapted weight, and of the error that it follows, in one update


class AdaptiveKL:
    """The weight of a divergence: held, or adapted after every update until the divergence is as wanted.

    The weight grows by a tenth of the share that the divergence is above the target, by two percent at most,
    and shrinks likewise (Ziegler et al., arXiv:1909.08593).

    >>> kl = AdaptiveKL(weight=0.5, target=0.1)
    >>> [round(kl.adapt(divergence), 6) for divergence in (0.11, 3.0, 0.0)]
    [0.505, 0.5151, 0.504798]

    Args:
        weight: Where it begins.
        target: The divergence to be held; None for a weight that stays as it is.
    """

    def __init__(self, weight: float, target: float | None = None) -> None:
        """Begin with a weight."""
        self.weight, self.target = weight, target

    def adapt(self, divergence: float) -> float:
        """The weight for the next update, after one whose sequences had this divergence."""
        if self.target is not None:
            error = (divergence - self.target) / self.target
            self.weight *= 1 + STEP * min(max(error, -MOST), MOST)
        return self.weight
