"""SeqGAN from scratch: Algorithm 1 of arXiv:1609.05473 in one file, to be read from top to bottom.

A generator G (an LSTM) learns to generate sequences like real ones from a discriminator D (a CNN), which learns to tell
real from generated ones. No gradient passes through sampled tokens, so D's probability that a sequence is real is a
reward, and G learns by policy gradient. Rollouts estimate what each token of the sequence is worth.

The real sequences come from an oracle: an LSTM with random weights, which knows the probability of any sequence.
NLL-oracle, the paper's figure, is the oracle's negative log-likelihood of generated sequences; NLL-test is the
generator's of held-out real ones. Both are in nats per token; lower is better, and real sequences have 4.386.

    python examples/seqgan_from_scratch.py

takes 40 seconds on one core of an AMD EPYC, and prints (the lines of rounds 5 and 15 are left out here):

        phase  step  NLL-oracle  NLL-test
  pretraining     5       7.625     5.951
  pretraining    10       7.273     6.060
discriminator    10       7.022     6.156
discriminator    20       7.048     6.243
     constant    10       7.098     6.139
     constant    20       6.981     6.240

The pretraining lowers NLL-oracle, and learning from D lowers it further. So does the control, the reward 0.5 for every
sequence: without a baseline, the update makes whatever was sampled likelier, G becomes less diverse, and NLL-test
rises. `--reward random` is another control; `--baseline leave_one_out` leaves nothing to learn from a constant reward.
A gain without its control is no evidence. docs/results.md has both on the published oracle, over five seeds and with
a shorter training of D. The published sizes take many hours:

    --task oracle --filters published --pretrain-epochs 120 --pretrain-d-steps 50 --rounds 200 --rollouts 16
    --d-steps 5 --d-epochs 3 --d-samples 9984 --d-learning-rate 1e-4 --samples 9984

agents/seqgan.py is the same algorithm for any task, faster; a test holds that both learn the same weights.
"""

import argparse
import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

import text_gym
from text_gym.tasks.task import Task

TASK = "oracle(vocab_size=1000, max_length=8, train_size=3000, test_size=2000)"
BATCH_SIZE = 64
START = 0  # the generator reads this token first; as in the published code, it is an ordinary token too
GENERATED, REAL = 0, 1  # the discriminator's two classes
MAX_GRAD_NORM = 5.0  # of the generator
L2 = 0.2  # weight of the penalty on the discriminator's output layer; in the published code, not in the paper
FILTERS = {  # of the discriminator, {width: number}
    "small": {1: 32, 2: 32, 3: 32, 4: 32},
    "published": {1: 100, 2: 200, 3: 200, 4: 200, 5: 200, 6: 100, 7: 100, 8: 100, 9: 100, 10: 100, 15: 160, 20: 160},
}
REWARDS = ("discriminator", "constant", "random")
Reward = Callable[[Tensor], Tensor]  # scores finished sequences [n, T]: [n]

# The letters of the shapes: B sequences in a batch, T tokens in a sequence, t tokens in a prefix, N rollouts, V tokens
# in the vocabulary, E numbers in an embedding, H in the LSTM's state, F filters in the discriminator.


# ---- The generator: a language model ---------------------------------------------------------------------------------
class Generator(nn.Module):
    """The policy G(y_t | y_1 ... y_t-1): an LSTM that predicts each token from the tokens before it."""

    def __init__(self, vocab_size: int, embedding: int = 32, hidden: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size, embedding)
        self.lstm = nn.LSTM(embedding, hidden, batch_first=True)
        self.output = nn.Linear(hidden, vocab_size)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.1)

    def log_prob(self, tokens: Tensor) -> Tensor:
        """Log-probability of each token of sequences [B, T], given the tokens before it: [B, T]."""
        start = torch.full_like(tokens[:, :1], START)  # [B, 1]
        before = torch.cat([start, tokens[:, :-1]], dim=1)  # [B, T]: shifted by one, so that no token sees itself
        hidden, _ = self.lstm(self.embed(before))  # [B, T, H]
        logits = self.output(hidden)  # [B, T, V]
        return logits.log_softmax(dim=2).gather(2, tokens[:, :, None])[:, :, 0]  # [B, T]

    @torch.no_grad()
    def complete(self, prefixes: Tensor, length: int) -> Tensor:
        """Sample the rest of sequences that begin with prefixes [B, t], and return them whole: [B, T]."""
        start = torch.full((len(prefixes), 1), START)  # [B, 1]
        tokens, state = prefixes, None
        unread = torch.cat([start, prefixes], dim=1)  # [B, 1 + t]
        while tokens.shape[1] < length:
            hidden, state = self.lstm(self.embed(unread), state)  # [B, 1 + t, H], and later [B, 1, H]
            unread = sample_token(self.output(hidden[:, -1]))  # [B, 1]
            tokens = torch.cat([tokens, unread], dim=1)  # [B, t + 1], and so on
        return tokens

    def sample(self, n: int, length: int) -> Tensor:
        """Sample n sequences: [n, T]."""
        return self.complete(torch.zeros(n, 0, dtype=torch.long), length)


def sample_token(logits: Tensor) -> Tensor:
    """Sample a token from each row of logits [B, V]: [B, 1]."""
    return torch.multinomial(logits.softmax(dim=1), 1)


# ---- The discriminator: a classifier of whole sequences --------------------------------------------------------------
class Discriminator(nn.Module):
    """D(Y), the probability that a sequence is real: Kim's CNN for sentences (2014) with a highway layer."""

    def __init__(self, vocab_size: int, filters: dict[int, int], embedding: int = 64, dropout: float = 0.25) -> None:
        super().__init__()
        features = sum(filters.values())  # F
        self.embed = nn.Embedding(vocab_size, embedding)
        self.convolutions = nn.ModuleList(nn.Conv1d(embedding, n, width) for width, n in filters.items())
        self.transform, self.gate = nn.Linear(features, features), nn.Linear(features, features)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(features, 2)
        nn.init.uniform_(self.embed.weight, -1, 1)
        for layer in (*self.convolutions, self.output):
            nn.init.trunc_normal_(layer.weight, std=0.1, a=-0.2, b=0.2)
            nn.init.constant_(layer.bias, 0.1)
        for layer in (self.transform, self.gate):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of GENERATED and REAL for sequences [B, T]: [B, 2]."""
        embedded = self.embed(tokens).transpose(1, 2)  # [B, E, T]
        maps = [convolution(embedded).relu() for convolution in self.convolutions]  # each [B, filters, T - width + 1]
        features = torch.cat([m.amax(dim=2) for m in maps], dim=1)  # [B, F]: the maximum over time
        gate = self.gate(features).sigmoid()  # [B, F]
        features = gate * self.transform(features).relu() + (1 - gate) * features  # [B, F]: the highway layer
        return self.output(self.dropout(features))  # [B, 2]

    @torch.no_grad()
    def prob_real(self, tokens: Tensor) -> Tensor:
        """D(Y) of sequences [B, T], without dropout: [B]. This is the reward."""
        self.eval()
        return self(tokens).softmax(dim=1)[:, REAL]


# ---- How the generator learns ----------------------------------------------------------------------------------------
def rollout_values(policy: Generator, tokens: Tensor, reward: Reward, rollouts: int) -> Tensor:
    """Q of Eq. (4), by Monte Carlo: the value of sequences [B, T] after each of their tokens, [B, T].

    The reward scores whole sequences only. So the value of a prefix is the mean reward of N ways to complete it.
    """
    batch, length = tokens.shape
    values = torch.zeros(batch, length)
    for t in range(1, length):  # Algorithm 1, line 9
        prefixes = tokens[:, :t].repeat_interleave(rollouts, dim=0)  # [B * N, t]: each prefix N times in succession
        rewards = reward(policy.complete(prefixes, length))  # [B * N]
        values[:, t - 1] = rewards.view(batch, rollouts).mean(dim=1)  # line 10; t - 1 is the last token's index
    values[:, length - 1] = reward(tokens)  # line 10 for the last token, after which there is nothing to complete
    return values


def policy_gradient_loss(generator: Generator, tokens: Tensor, values: Tensor, baseline: str) -> Tensor:
    """Loss whose gradient is minus the policy gradient of Eq. (7), summed over the batch.

    A token's log-probability rises in proportion to its value. Values are between 0 and 1, so without a baseline every
    token that was sampled is made likelier, a bad one too, only less. A baseline does not depend on the token itself,
    and leaves the expected gradient as it is: here the mean value of the other sequences at the same position.
    """
    if baseline == "leave_one_out":
        values = values - (values.sum(dim=0) - values) / (len(values) - 1)  # [B, T]
    return -(values * generator.log_prob(tokens)).sum()


def update_generator(generator: Generator, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Take one step of Adam down the gradient of a loss, Eq. (8)."""
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(generator.parameters(), MAX_GRAD_NORM)
    optimizer.step()


# ---- How the discriminator learns ------------------------------------------------------------------------------------
def discriminator_loss(discriminator: Discriminator, tokens: Tensor, classes: Tensor) -> Tensor:
    """Cross-entropy of Eq. (5) for sequences [B, T] of classes [B], and the penalty on the output layer."""
    output = discriminator.output
    penalty = (output.weight.square().sum() + output.bias.square().sum()) / 2
    return nn.functional.cross_entropy(discriminator(tokens), classes) + L2 * penalty


def train_discriminator(
    discriminator: Discriminator, optimizer: torch.optim.Optimizer, positive: Tensor, negative: Tensor, epochs: int
) -> None:
    """Train for some epochs on positive (real) and negative (generated) examples, each [n, T], in random order."""
    tokens = torch.cat([positive, negative])  # [2n, T]
    classes = torch.tensor([REAL] * len(positive) + [GENERATED] * len(negative))  # [2n]
    discriminator.train()  # with dropout
    for _ in range(epochs):
        for rows in torch.randperm(len(tokens)).split(BATCH_SIZE):
            optimizer.zero_grad()
            discriminator_loss(discriminator, tokens[rows], classes[rows]).backward()
            optimizer.step()


# ---- Algorithm 1 -----------------------------------------------------------------------------------------------------
def make_reward(name: str, discriminator: Discriminator) -> Reward:
    """Make the reward of this name: D(Y), or a control that knows nothing of the sequence."""
    if name == "constant":
        return lambda tokens: torch.full((len(tokens),), 0.5)
    if name == "random":
        return lambda tokens: torch.rand(len(tokens))
    return discriminator.prob_real


def report(phase: str, step: int, generator: Generator, task: Task, n: int) -> None:
    """Print how well the oracle likes n samples, and how well the generator likes real sequences, in nats per token."""
    samples = generator.sample(n, task.max_length)
    nll_oracle = -task.log_prob(samples.numpy()).mean() / task.max_length
    test = torch.from_numpy(task.batch("test").tokens)
    with torch.no_grad():
        nll_test = -torch.cat([generator.log_prob(part) for part in test.split(100)]).mean()
    print(f"{phase:>13} {step:>5} {nll_oracle:>11.3f} {nll_test:>9.3f}", flush=True)


def main(args: argparse.Namespace) -> None:
    """Run Algorithm 1: lines 1 to 5 once, then lines 6 to 19 with each of the rewards."""
    torch.set_num_threads(args.threads)
    task = text_gym.make_task(args.task)
    if not task.knows("log_prob") or task.vocab.eos is not None:
        raise SystemExit(f"{task} is no variant of the oracle: sequences must have one length and a known likelihood")
    length, vocab_size = task.max_length, len(task.vocab)  # T, V
    real = torch.from_numpy(task.batch("train").tokens)  # [n, T]: the data set S
    torch.manual_seed(args.seed)
    print(f"{'phase':>13} {'step':>5} {'NLL-oracle':>11} {'NLL-test':>9}")

    # Algorithm 1, line 1: initialize G and D with random weights.
    generator = Generator(vocab_size)
    discriminator = Discriminator(vocab_size, {w: n for w, n in FILTERS[args.filters].items() if w <= length})

    # Algorithm 1, line 2: pretrain G by maximum likelihood on S.
    optimizer = torch.optim.Adam(generator.parameters(), args.learning_rate)
    for epoch in range(1, args.pretrain_epochs + 1):
        for rows in torch.randperm(len(real)).split(BATCH_SIZE):
            update_generator(generator, optimizer, -generator.log_prob(real[rows]).mean())
        if epoch % args.report_every == 0:
            report("pretraining", epoch, generator, task, args.samples)

    # Algorithm 1, line 3: the rollout policy begins as a copy of G.
    rollout_policy = copy.deepcopy(generator)

    # Algorithm 1, lines 4 and 5: generate negative examples, and pretrain D on positive and negative ones.
    d_optimizer = torch.optim.Adam(discriminator.parameters(), args.d_learning_rate)
    for _ in range(args.pretrain_d_steps):
        positive = real[torch.randperm(len(real))[: args.d_samples]]  # [n, T]
        negative = generator.sample(len(positive), length)  # [n, T]
        train_discriminator(discriminator, d_optimizer, positive, negative, args.d_epochs)

    pretrained = (generator, rollout_policy, discriminator, d_optimizer)  # copied together: Adam trains the copy of D
    for name in args.reward:
        torch.manual_seed(args.seed)  # every reward gets the same networks and the same random numbers
        generator, rollout_policy, discriminator, d_optimizer = copy.deepcopy(pretrained)
        optimizer = torch.optim.Adam(generator.parameters(), args.learning_rate)
        reward = make_reward(name, discriminator)

        for step in range(1, args.rounds + 1):  # Algorithm 1, line 6
            for _ in range(args.g_steps):  # Algorithm 1, line 7
                tokens = generator.sample(BATCH_SIZE, length)  # [B, T]; Algorithm 1, line 8
                values = rollout_values(rollout_policy, tokens, reward, args.rollouts)  # [B, T]; lines 9 to 11
                loss = policy_gradient_loss(generator, tokens, values, args.baseline)
                update_generator(generator, optimizer, loss)  # Algorithm 1, line 12
            for _ in range(args.d_steps if name == "discriminator" else 0):  # Algorithm 1, line 14
                positive = real[torch.randperm(len(real))[: args.d_samples]]
                negative = generator.sample(len(positive), length)  # Algorithm 1, line 15
                train_discriminator(discriminator, d_optimizer, positive, negative, args.d_epochs)  # line 16
            rollout_policy.load_state_dict(generator.state_dict())  # Algorithm 1, line 18
            if step % args.report_every == 0:
                report(name, step, generator, task, args.samples)
        # Algorithm 1, line 19: "until SeqGAN converges" is a number of rounds here, as in the published code.


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--task", default=TASK, help="the oracle, with sizes in brackets")
    add("--reward", nargs="+", default=REWARDS[:2], choices=REWARDS, help="rewards to learn from, one after another")
    add("--baseline", default="none", choices=("none", "leave_one_out"), help="what is subtracted from values")
    add("--pretrain-epochs", type=int, default=10, help="epochs of maximum likelihood (line 2)")
    add("--pretrain-d-steps", type=int, default=5, help="updates of D before the first round (lines 4 and 5)")
    add("--rounds", type=int, default=20, help="rounds of adversarial training (lines 6 to 19)")
    add("--g-steps", type=int, default=1, help="updates of G in a round (line 7)")
    add("--rollouts", type=int, default=4, help="completions of a prefix, N in Eq. (4)")
    add("--d-steps", type=int, default=1, help="updates of D in a round, each on new samples (line 14)")
    add("--d-epochs", type=int, default=1, help="epochs in an update of D, k in line 16")
    add("--d-samples", type=int, default=500, help="positive and negative examples, of each, in an update of D")
    add("--filters", default="small", choices=FILTERS, help="convolutions of D")
    add("--learning-rate", type=float, default=1e-2, help="of Adam for G")
    add("--d-learning-rate", type=float, default=1e-3, help="of Adam for D")
    add("--samples", type=int, default=2000, help="samples for NLL-oracle")
    add("--report-every", type=int, default=5, help="epochs, or rounds, from one line of the table to the next")
    add("--threads", type=int, default=1, help="threads of torch; networks as small as the defaults gain from one only")
    add("--seed", type=int, default=0, help="seed of everything random but the oracle")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(parse_arguments())
