"""What Stable-Baselines3's on-policy algorithms get beside a policy: minibatches, and a price for going astray."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NamedTuple

import numpy as np
import torch
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import obs_as_tensor
from torch import Tensor

from agents.common.kl import AdaptiveKL
from agents.common.losses import chunked_log_probs
from agents.networks.policies import LogitMask
from text_gym.arrays import AnyArray, IntArray
from text_gym.errors import OptionError
from text_gym.language_model import LanguageModel


class WholeCopies:
    """Minibatches hold everything that some of the copies did, so that their prefixes are read together, once."""

    def get(self, batch_size: int | None = None) -> Generator[Any, None, None]:
        """Minibatches of about so many transitions: of as many whole copies, and at least one."""
        buffer: Any = self
        if not buffer.generator_ready:
            next(super().get(1))  # type: ignore[misc] # lays the steps of each copy side by side
        steps, copies = buffer.buffer_size, buffer.n_envs
        together = copies if batch_size is None else max(1, batch_size // steps)
        order = np.random.permutation(copies)  # noqa: NPY002 - drawn as Stable-Baselines3 does
        for begin in range(0, copies, together):
            firsts = order[begin : begin + together] * steps
            yield buffer._get_samples((firsts[:, None] + np.arange(steps)).ravel())


class CopiesBuffer(WholeCopies, RolloutBuffer):
    """For observations that are prefixes."""


class DictCopiesBuffer(WholeCopies, DictRolloutBuffer):
    """For observations with prompts."""


class Written(NamedTuple):
    """The sequences that a rollout wrote, and where each of its transitions is in them."""

    tokens: IntArray
    """Each episode as far as it is known, [m, T], PAD behind it."""
    prompts: IntArray | None
    """What was answered, [m, P]."""
    rows: IntArray
    """The episode that each transition belongs to, [steps, copies]."""
    places: IntArray
    """The place in it of the token that was appended, [steps, copies]."""


def written(buffer: Any, pad: int) -> Written:
    """Put together the sequences of a rollout buffer that has just been filled."""
    observations, actions = buffer.observations, buffer.actions[:, :, 0].astype(np.int64)  # [steps, copies]
    prompts = observations["prompt"] if isinstance(observations, dict) else None
    prefixes: AnyArray = observations if prompts is None else observations["prefix"]  # [steps, copies, T]
    places = (prefixes != pad).sum(axis=2)
    last = np.ones(actions.shape, dtype=bool)  # of an episode, or of the rollout
    last[:-1] = buffer.episode_starts[1:] > 0
    copy, step = np.nonzero(last.T)
    tokens = prefixes[step, copy].astype(np.int64)
    tokens[np.arange(len(step)), places[step, copy]] = actions[step, copy]
    rows = np.cumsum(last.T.ravel()) - last.T.ravel()  # how many episodes ended before
    of_copies = rows.reshape(last.T.shape).T
    return Written(tokens, None if prompts is None else prompts[step, copy].astype(np.int64), of_copies, places)


@torch.no_grad()
def transition_log_probs(
    model: LanguageModel, sequences: Written, masks: AnyArray | None = None, logit_mask: LogitMask | None = None
) -> AnyArray:
    """A language model's log-probability of every token that a rollout appended, [steps, copies].

    Args:
        model: The language model.
        sequences: What was written.
        masks: True at the tokens among which it was chosen, [steps, copies, V]; all if not given.
        logit_mask: Added to the logits.
    """
    device = next(model.parameters()).device
    tokens = torch.from_numpy(sequences.tokens).to(device)
    prompts = None if sequences.prompts is None else torch.from_numpy(sequences.prompts).to(device)
    rows, places = (torch.from_numpy(array.ravel()).to(device) for array in (sequences.rows, sequences.places))
    model.eval()

    def limited(logits: Tensor, part: slice) -> Tensor:
        if logit_mask is not None:
            logits = logits + logit_mask.at(places[part])
        if masks is not None:
            allowed = torch.from_numpy(masks.reshape(len(rows), -1)[part] > 0).to(device)
            logits = logits.masked_fill(~allowed, -torch.inf)
        return logits

    features = model.features(tokens, prompts)[rows, places]
    found = chunked_log_probs(model.output, features, tokens[rows, places], limited)
    log_probs: AnyArray = found.float().cpu().numpy().reshape(sequences.rows.shape)
    return log_probs


class KLPenalty(BaseCallback):
    """A callback for Stable-Baselines3's on-policy algorithms: each token costs what it is likelier than at the start.

    After each rollout, `weight` times the log-ratio to the reference is taken off every step's reward, and returns and
    advantages are computed anew. The metric `train/kl_to_start` is the mean log-ratio between what the policy
    really drew from and the reference within the same masks, so its expectation is never negative.

    Args:
        reference: A language model that does not learn, for the policy of `agents.sb3.actor_critic` to stay near.
        kl: The weight, and how it is adapted.
        logit_mask: The mask added to the policy's logits, to be added to the reference's too.
        unmasked: Whether steps pay for the ratio without masks, as NLPO does, and the weight follows that.
    """

    def __init__(
        self, reference: LanguageModel, kl: AdaptiveKL, logit_mask: LogitMask | None = None, unmasked: bool = False
    ) -> None:
        """Keep the parts."""
        super().__init__()
        self.reference, self.kl, self.logit_mask, self.unmasked = reference, kl, logit_mask, unmasked

    def _init_callback(self) -> None:
        """Refuse what has no language model to compare."""
        policy: Any = self.model.policy
        if not hasattr(policy, "language_model"):
            raise OptionError(
                f"KLPenalty is for a policy that is a language model, as TextPolicy is one, not {policy!r}"
            )

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        algorithm: Any = self.model
        buffer, model = algorithm.rollout_buffer, algorithm.policy.language_model
        sequences = written(buffer, algorithm.policy.features_extractor.pad)
        masks = self._masks(buffer)
        ratios = buffer.log_probs - transition_log_probs(self.reference, sequences, masks, self.logit_mask)
        self.logger.record("train/kl_to_start", float(ratios.mean()))
        self.logger.record("train/kl_weight", self.kl.weight)
        if self.unmasked and masks is not None:
            ours, theirs = (transition_log_probs(m, sequences, None, self.logit_mask) for m in (model, self.reference))
            ratios = ours - theirs
            self.logger.record("train/kl_unmasked", float(ratios.mean()))
        if self.kl.weight:
            buffer.rewards -= self.kl.weight * ratios
            with torch.no_grad():  # of what follows; `values` among the locals are not always those
                after = algorithm.policy.predict_values(obs_as_tensor(self.locals["new_obs"], algorithm.device))
            buffer.compute_returns_and_advantage(after, self.locals["dones"])
        self.kl.adapt(float(ratios.mean()))

    @staticmethod
    def _masks(buffer: Any) -> AnyArray | None:
        """Those among which tokens were chosen, [steps, copies, V], where the algorithm keeps any."""
        masks = getattr(buffer, "action_masks", None)
        return None if masks is None else masks.reshape(buffer.buffer_size, buffer.n_envs, -1)
