"""KL penalty for Stable-Baselines3's on-policy algorithms."""

from __future__ import annotations

import numpy as np
import torch
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import obs_as_tensor
from torch import Tensor

from agents.common.kl import AdaptiveKL
from agents.common.losses import chunked_log_probs
from agents.networks.policies import LogitMask
from agents.sb3.actor_critic import LanguageActorCritic
from agents.sb3.buffers import RolloutSequences, rollout_sequences
from text_gym.arrays import AnyArray
from text_gym.errors import OptionError
from text_gym.language_model import LanguageModel


class KLPenalty(BaseCallback):
    """Callback that subtracts a KL penalty from the reward of each token.

    After each rollout, `kl.weight` times the log-ratio of policy and reference policy is subtracted from the reward of
    each step. Returns and advantages are then computed again. The metric `train/kl_to_start` is the mean log-ratio with
    the action masks of the rollout, an estimate of a KL divergence.

    Args:
        reference: Reference policy.
        kl: Weight of the penalty, and its adaptation.
        logit_mask: Mask that is added to the logits of policy and reference.
        unmasked: Whether the penalty uses the log-ratio without action masks, as in NLPO.
    """

    def __init__(
        self, reference: LanguageModel, kl: AdaptiveKL, logit_mask: LogitMask | None = None, unmasked: bool = False
    ) -> None:
        super().__init__()
        self.reference = reference
        self.kl = kl
        self.logit_mask = logit_mask
        self.unmasked = unmasked

    def _init_callback(self) -> None:
        policy = self.model.policy
        if not isinstance(policy, LanguageActorCritic):
            raise OptionError(
                f"KLPenalty needs a policy whose actor is a language model, and {policy!r} is not; use TextPolicy"
            )
        self.policy = policy

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        assert isinstance(self.model, OnPolicyAlgorithm)
        buffer = self.model.rollout_buffer
        sequences = rollout_sequences(buffer, self.policy.features_extractor.pad)
        masks = action_masks(buffer)
        ratios = buffer.log_probs - transition_log_probs(self.reference, sequences, masks, self.logit_mask)
        self.logger.record("train/kl_to_start", float(ratios.mean()))
        self.logger.record("train/kl_weight", self.kl.weight)
        if self.unmasked and masks is not None:
            log_probs = transition_log_probs(self.policy.language_model, sequences, None, self.logit_mask)
            ratios = log_probs - transition_log_probs(self.reference, sequences, None, self.logit_mask)
            self.logger.record("train/kl_unmasked", float(ratios.mean()))
        if self.kl.weight:
            buffer.rewards -= self.kl.weight * ratios
            with torch.no_grad():  # locals["values"] are not always the values after the last step
                after = self.model.policy.predict_values(obs_as_tensor(self.locals["new_obs"], self.model.device))
            buffer.compute_returns_and_advantage(after, self.locals["dones"])
        self.kl.adapt(float(ratios.mean()))


@torch.no_grad()
def transition_log_probs(
    model: LanguageModel,
    sequences: RolloutSequences,
    masks: AnyArray | None = None,
    logit_mask: LogitMask | None = None,
) -> AnyArray:
    """Compute the log-probability of every token of a rollout, [steps, envs].

    Args:
        model: Language model.
        sequences: Sequences of the rollout.
        masks: Action masks [steps, envs, V], True at allowed tokens; None if all tokens are allowed.
        logit_mask: Mask that is added to the logits.
    """
    device = next(model.parameters()).device
    tokens = torch.from_numpy(sequences.tokens).to(device)
    prompts = None if sequences.prompts is None else torch.from_numpy(sequences.prompts).to(device)
    rows, positions = (torch.from_numpy(array.ravel()).to(device) for array in (sequences.rows, sequences.positions))
    model.eval()

    def masked(logits: Tensor, part: slice) -> Tensor:
        if logit_mask is not None:
            logits = logits + logit_mask.at(positions[part])
        if masks is not None:
            allowed = torch.from_numpy(masks.reshape(len(rows), -1)[part] > 0).to(device)
            logits = logits.masked_fill(~allowed, -torch.inf)
        return logits

    features = model.features(tokens, prompts)[rows, positions]
    log_probs = chunked_log_probs(model.output, features, tokens[rows, positions], masked)
    return log_probs.float().cpu().numpy().reshape(sequences.rows.shape)


def action_masks(buffer: RolloutBuffer) -> AnyArray | None:
    """Return the action masks of a rollout, [steps, envs, V]; None for an algorithm without action masks."""
    masks: AnyArray | None = getattr(buffer, "action_masks", None)
    return None if masks is None else np.reshape(masks, (buffer.buffer_size, buffer.n_envs, -1))
