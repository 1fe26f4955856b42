"""SeqGAN: REINFORCE on the reward of a discriminator, which is trained in alternation with the policy.

The paper is Yu et al., "SeqGAN: Sequence Generative Adversarial Nets with Policy Gradient" (arXiv:1609.05473). Comments
and docstrings name the lines of its Algorithm 1. The generator of the paper is the policy; `agents.reinforce` has the
generator update (lines 8 to 12).
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from agents.common.agent import Stream
from agents.common.checkpoint import Json
from agents.common.generation import Env
from agents.common.settings import Presets
from agents.mle import MLE
from agents.mle import PRESETS as MLE_PRESETS
from agents.networks.discriminators import Discriminator, DiscriminatorSettings
from agents.networks.policies import PolicySettings
from agents.reinforce import PUBLISHED_UPDATE, PolicyGradientSettings, Reinforce
from text_gym.arrays import FloatArray
from text_gym.errors import OptionError
from text_gym.rewards import Scorer
from text_gym.sequences import Batch
from text_gym.validation import check_whole, suggest

HELD_OUT = 1000  # maximum number of held-out real sequences, and of generated ones, to measure the discriminator on


@dataclass(frozen=True)
class SeqGANSettings(PolicyGradientSettings):
    """Hyperparameters of `SeqGAN`: generator update, adversarial training, pretraining and discriminator."""

    rounds: int = 100
    """Number of rounds of adversarial training. Overridden by learn(steps) and --steps."""
    g_steps: int = 1
    """Number of generator updates per round."""
    d_steps: int = 1
    """Number of discriminator updates per round, each on newly generated sequences."""
    d_epochs: int = 1
    """Number of epochs per discriminator update."""
    d_samples: int = 10_000
    """Number of real sequences, and of generated ones, per discriminator update; limited by the training split."""
    pretrain_preset: str = "strong"
    """Preset of `MLE` for pretraining the generator. Not used with a warm start."""
    pretrain_epochs: int | None = None
    """Number of epochs for pretraining the generator; None for the number in the preset."""
    pretrain_d_steps: int = 10
    """Number of discriminator updates for pretraining the discriminator."""
    discriminator: DiscriminatorSettings = field(default_factory=DiscriminatorSettings)
    """Network, reward and training of the discriminator."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, 0, "rounds", "g_steps", "d_steps", "d_epochs", "pretrain_d_steps", "pretrain_epochs")
        check_whole(self, 1, "d_samples")
        if self.pretrain_preset not in MLE_PRESETS:
            raise OptionError(
                f"pretrain_preset={self.pretrain_preset!r} is not a preset of mle."
                + suggest(str(self.pretrain_preset), MLE_PRESETS)
            )


PRESETS: dict[str, dict[str, object]] = {
    # The published code: 120 epochs of MLE; 50 discriminator updates of 3 epochs; 200 rounds of 1 generator update and
    # 5 discriminator updates of 3 epochs. Differences from it:
    # - Every epoch shuffles the training sequences.
    # - A discriminator update uses as many generated sequences as real ones, 9,984. The published code generates 10,000
    #   and drops the last incomplete batch.
    # - The policy itself generates the rollouts. The published code has a moving average of the policy for this, which
    #   by mistake is never updated and equals the policy.
    # - The LSTM has two bias vectors per gate, as in torch, each initialised from N(0, 0.1); the published one has one.
    # - The discriminator uses bfloat16 autocast on devices that support it; discriminator.bfloat16=False turns it off.
    "paper": {
        **PUBLISHED_UPDATE,
        "rounds": 200,
        "g_steps": 1,
        "d_steps": 5,
        "d_epochs": 3,
        "pretrain_preset": "paper",
        "pretrain_d_steps": 50,
    },
    # The cheapest tested settings with the published update that reach the published NLL-oracle of 8.74: a third of the
    # pretraining epochs and of the rounds, and in each round one discriminator update of one epoch on 2,000 real and
    # 2,000 generated sequences. docs/results.md compares their learning curve with that of a constant reward.
    "fast": {
        **PUBLISHED_UPDATE,
        "rounds": 60,
        "pretrain_preset": "fast",
        "pretrain_d_steps": 5,
        "d_samples": 2_000,
        "d_steps": 1,
        "d_epochs": 1,
    },
    # Trains on the built-in grammar in about a minute: a small discriminator with its log-odds as the reward, larger
    # batches at a lower learning rate, and teacher forcing, which keeps the policy close to the data.
    "demo": {
        "pretrain_preset": "demo",
        "rounds": 20,
        "g_steps": 4,
        "batch_size": 256,
        "learning_rate": 1e-3,
        "rollouts": 4,
        "teacher_forcing": 1.0,
        "d_epochs": 2,
        "pretrain_d_steps": 2,
        "d_samples": 4_000,
        "discriminator": {
            "reward": "log_ratio",
            "filters": ((1, 32), (2, 32), (3, 32), (4, 32)),
            "learning_rate": 1e-3,
        },
    },
    # Fine-tuning of a Hugging Face model: a small learning rate and a KL penalty keep the policy close to it.
    "finetune": {
        "pretrain_preset": "finetune",
        "rollouts": 4,
        "batch_size": 32,
        "learning_rate": 1e-5,
        "kl": {"weight": 0.1},
        "pretrain_d_steps": 2,
        "d_samples": 2_000,
    },
}


class SeqGAN(Reinforce):
    """SeqGAN (Algorithm 1). One step of learn() is one round; both pretrainings run before the first round.

    The environment defines the task; its reward is not used. The attribute `discriminator` is a Reward, which can be
    passed to any environment with the same tokens.

    >>> import gymnasium as gym, text_gym
    >>> env = gym.make("TextGen-v0", task="oracle(vocab_size=9, max_length=4, train_size=64, valid_size=9)")
    >>> agent = SeqGAN(env, seed=0, preset="demo", progress=False, pretrain_epochs=1, rollouts=2).learn(1)
    >>> agent.steps_done, agent.discriminator.score(agent.sample(3)).shape
    (1, (3,))

    Args:
        env: A TextGen-v0 environment.
        seed: See `Agent`.
        preset: Name of a set of hyperparameters: "paper", "fast", "demo" or "finetune".
        start_discriminator: Trained discriminator to copy the weights of. The discriminator is then not pretrained.
        **options: See `Agent` and `SeqGANSettings`. With `start`, the generator is not pretrained.
    """

    name = "seqgan"
    settings_type: ClassVar[type] = SeqGANSettings
    presets: ClassVar[Presets] = PRESETS
    shown = ("train/reward", "discriminator/accuracy")
    settings: SeqGANSettings

    def __init__(
        self,
        env: Env,
        seed: int | None = None,
        preset: str | None = None,
        *,
        start_discriminator: Discriminator | None = None,
        **options: Any,
    ) -> None:
        self._start_discriminator = start_discriminator
        super().__init__(env, seed, preset, **options)

    def build(self) -> None:
        """Initialise the generator and the discriminator, each with its own optimiser (line 1)."""
        super().build()
        self.discriminator = Discriminator(self.task, self.rules.limit, self.settings.discriminator, self.device)
        self._scorer = Scorer(self.discriminator, self.task)
        self.generator_pretrained = self._initial_policy is not None
        self.d_steps_pretrained = 0
        if self._start_discriminator is not None:
            self.discriminator.load_weights(self._start_discriminator)
            self.d_steps_pretrained = self.settings.pretrain_d_steps
        self._check_real_sequences()

    def _check_real_sequences(self) -> None:
        """Raise OptionError if there are no real sequences, or if they are longer than generated ones can be."""
        references = self.task.train.references
        if not len(references):
            raise OptionError(
                f"the discriminator needs real sequences, and the 'train' split of {self.task!r} is empty; "
                "give a task with training sequences"
            )
        longest = min(references.longest + (self.task.vocab.eos is not None), self.task.max_length)
        if longest > self.rules.limit:
            raise OptionError(
                f"the 'train' split of {self.task!r} has sequences of {longest} tokens, and the environment limits "
                f"them to {self.rules.limit}; give max_length={self.rules.limit} to make_task() too"
            )

    def begin_learning(self, anew: bool, interrupted: threading.Event) -> None:
        """Pretrain the generator and the discriminator, unless this is done already (lines 2 to 5)."""
        super().begin_learning(anew, interrupted)
        if not self.generator_pretrained:
            self.pretrain_generator()
        self.pretrain_discriminator(interrupted)

    def one_step(self, step: int) -> bool:
        """Run one round of adversarial training (lines 7 to 18)."""
        random = self.numpy_random(step)
        for _ in range(self.settings.g_steps):  # line 7
            self.update_generator(random)
        for _ in range(self.settings.d_steps):  # line 14
            for name, value in self.update_discriminator(random).items():
                self.logger.record(f"discriminator/{name}", value)
        return True

    def pretrain_generator(self) -> None:
        """Pretrain the generator by maximum likelihood (line 2); its own subfolder makes it resumable."""
        self.checkpoint()  # saves the seed and the settings, which a resumed run needs
        architecture = {field.name: getattr(self.settings, field.name) for field in fields(PolicySettings)}
        mle = MLE(
            self.env,
            self.seed,
            self.settings.pretrain_preset,
            None if self.folder is None else self.folder / "pretraining",
            str(self.device),
            progress=self.progress,
            log=self.log,
            **architecture,
        )
        epochs = self.settings.pretrain_epochs
        mle.learn(None if epochs is None or mle.finished else max(0, epochs - mle.steps_done))
        self.load_policy(mle.policy)
        self.cost = {name: value + mle.cost[name] for name, value in self.cost.items()}
        self.generator_pretrained = True
        self.checkpoint()

    def pretrain_discriminator(self, interrupted: threading.Event) -> None:
        """Pretrain the discriminator on real and generated sequences (lines 4 and 5)."""
        steps = self.settings.pretrain_d_steps
        hidden = not self.progress or None
        with tqdm(total=steps, initial=self.d_steps_pretrained, desc="discriminator", disable=hidden) as bar:
            while self.d_steps_pretrained < steps and not interrupted.is_set():
                stream = (self.d_steps_pretrained, Stream.PRETRAINING)
                with self.counted(), self.randomness(*stream):
                    metrics = self.update_discriminator(self.numpy_random(*stream))
                self.d_steps_pretrained += 1
                self.logger.record("pretraining/pass", self.d_steps_pretrained)
                for name, value in metrics.items():
                    self.logger.record(f"pretraining/{name}", value)
                self.logger.dump(self.d_steps_pretrained)
                bar.update()
                bar.set_postfix({name: f"{value:.4g}" for name, value in metrics.items() if name == "accuracy"})
                self.checkpoint()

    def update_generator(self, random: np.random.Generator) -> None:
        """Sample sequences, value their prefixes by rollouts, and update the policy (lines 8 to 12)."""
        self.update(self.torch_random(random), random)

    def rewards(self, batch: Batch) -> FloatArray:
        """Score finished sequences with the discriminator, [n]; the reward in equation 4 of the paper."""
        return self._scorer(batch).total

    def update_discriminator(self, random: np.random.Generator) -> dict[str, float]:
        """Train the discriminator on real and newly generated sequences (lines 15 and 16).

        Returns:
            The mean loss of the last epoch, and the accuracy on held-out sequences.
        """
        generator = self.torch_random(random)
        chosen = random.permutation(len(self.task.train.references))[: self.settings.d_samples]
        real = self.task.batch("train", chosen)
        generated = self.generate(len(real), generator, real.examples)  # line 15; for the same prompts
        real_rows, generated_rows = self.discriminator.rows(real), self.discriminator.rows(generated)
        metrics = {}
        for _ in range(self.settings.d_epochs):  # line 16
            metrics["loss"] = self.discriminator.train_epoch(real_rows, generated_rows, generator)
        return metrics | self._discriminator_accuracy(generator)

    def _discriminator_accuracy(self, generator: torch.Generator) -> dict[str, float]:
        """Compute the discriminator's accuracy on held-out real sequences and on newly generated ones."""
        real = self.task.batch("valid", np.arange(min(HELD_OUT, len(self.task.valid.references))))
        examples = real.examples if len(real) else None
        if examples is None and self.task.conditional:
            examples = self.sample_examples(HELD_OUT, generator)
        generated = self.generate(len(real) or HELD_OUT, generator, examples)
        on_generated = 1 - self.discriminator.share_real(self.discriminator.rows(generated))
        if not len(real):
            return {"right_on_written": on_generated}
        on_real = self.discriminator.share_real(self.discriminator.rows(real))
        accuracy = (on_real + on_generated) / 2
        return {"right_on_real": on_real, "right_on_written": on_generated, "accuracy": accuracy}

    @property
    def default_steps(self) -> int:
        """Number of rounds of adversarial training in the settings."""
        return self.settings.rounds

    @classmethod
    def updates_in(cls, settings: PolicyGradientSettings, steps: int | None = None) -> int:
        """Return the number of generator updates in `steps` rounds, or in a whole run if None."""
        assert isinstance(settings, SeqGANSettings)
        return settings.g_steps * (settings.rounds if steps is None else steps)

    @classmethod
    def begins_with(cls, settings: PolicyGradientSettings) -> str:
        """Describe the initial policy without a warm start: SeqGAN pretrains it."""
        return f"{super().begins_with(settings)}, then its own MLE"

    @classmethod
    def relative_cost(cls, settings: PolicyGradientSettings, steps: int | None) -> float:
        """Return the cost of the generator updates plus the number of discriminator epochs."""
        assert isinstance(settings, SeqGANSettings)
        rounds = settings.rounds if steps is None else steps
        return super().relative_cost(settings, steps) + rounds * settings.d_steps * settings.d_epochs

    def trained_parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """Return the parts of `Reinforce`, the discriminator and its optimiser."""
        return super().trained_parts() | {
            "discriminator": self.discriminator.network,
            "discriminator_adam": self.discriminator.optimizer,
        }

    def trained_numbers(self) -> Json:
        """Return the numbers of `Reinforce` and the progress of both pretrainings."""
        return super().trained_numbers() | {
            "generator_pretrained": self.generator_pretrained,
            "d_steps_pretrained": self.d_steps_pretrained,
        }

    def restore_trained_numbers(self, numbers: Json) -> None:
        """Restore the numbers of `Reinforce` and the progress of both pretrainings."""
        super().restore_trained_numbers(numbers)
        self.generator_pretrained = bool(numbers["generator_pretrained"])
        self.d_steps_pretrained = int(numbers["d_steps_pretrained"])
