"""MLE, and the functions of all agents, tested with MLE: sampling, prediction, checkpoints and resumption."""

import csv
import json
import math
import os
import signal
import sys
import threading
import time
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy

import text_gym
from agents.common.agent import Agent
from agents.common.checkpoint import CheckpointError
from agents.common.evaluation import evaluate
from agents.common.training import stop_on_interrupt
from agents.mle import MLE, MLESettings
from tests.helpers.models import assert_counts_fit
from tests.helpers.programs import Program, run
from text_gym.errors import DependencyError, OptionError, TrainingError
from text_gym.language_model import LSTM

SMALL = {"embedding": 8, "hidden": 8, "dropout": 0.2, "schedule": ((6, 1e-2),)}


@pytest.fixture(scope="module")
def env():
    return gym.make("TextGen-v0", task=text_gym.make_task("grammar", train_size=300, valid_size=100, test_size=100))


def small(env, seed=0, **hyper):
    return MLE(env, seed=seed, progress=False, **(SMALL | hyper))


def weights_of(agent):
    return torch.cat([p.detach().flatten() for p in agent.policy.parameters()])


def test_it_learns_the_likeliest_distribution(write):
    """With three equally likely sentences, the loss falls to log 3 per sentence, and only they are sampled."""
    path = write("three.txt", "a b\nb b a\na\n" * 30)
    env = gym.make("TextGen-v0", task=str(path), valid=0.0, test=0.0)
    agent = MLE(env, seed=0, progress=False, dropout=0.0, schedule=((60, 2e-2),)).learn()
    assert agent.nll("train") * 3 == pytest.approx(math.log(3), abs=0.03)
    texts, counts = np.unique(agent.sample(3000, seed=0).texts, return_counts=True)
    common = dict(zip(texts.tolist(), counts.tolist(), strict=True))
    assert sum(common.get(t, 0) for t in ("a b", "b b a", "a")) > 2900
    assert min(common[t] for t in ("a b", "b b a", "a")) > 850


def test_every_epoch_sees_every_sequence_once(env, monkeypatch):
    agent, seen = small(env), []
    monkeypatch.setattr(agent, "_update", lambda batch: seen.extend(batch.texts) or (1.0, 1))
    agent.one_step(0)
    assert sorted(seen) == sorted(env.unwrapped.task.batch("train").texts)
    first, seen[:] = list(seen), []
    agent.one_step(1)
    assert seen != first


def test_likelihoods_and_samples_belong_together(env):
    agent = small(env).learn(2)
    batch = agent.sample(2000, seed=1)
    by_torch = agent.policy.eval().log_prob(torch.tensor(batch.tokens), torch.tensor(batch.valid_mask)).sum(1)
    assert agent.log_prob(batch.tokens, batch.lengths) == pytest.approx(by_torch.detach().numpy(), abs=1e-4)
    assert (agent.sample(9, seed=2).tokens == agent.sample(9, seed=2).tokens).all()
    assert (agent.sample(9).tokens != agent.sample(9).tokens).any()
    cold, hot = (agent.log_prob(agent.sample(500, temperature=t, seed=0).tokens).mean() for t in (0.5, 1.5))
    assert cold > hot
    with pytest.raises(OptionError, match="temperature"):
        agent.sample(3, temperature=0)


def test_evaluate_measures_against_the_known_source(env):
    agent = small(env).learn(2)
    task = env.unwrapped.task
    results = evaluate(agent, n=500)
    assert results["nll_test"] == pytest.approx(agent.nll("test"))
    assert results["kl_data_model"] == pytest.approx(results["nll_test"] - results["data_entropy"])
    drawn = agent.sample(500, seed=0)
    assert results["validity"] == task.is_valid(drawn.tokens, drawn.lengths).mean()
    assert results["nll_oracle"] == math.inf or results["validity"] == 1.0
    answers = gym.make("TextGen-v0", task="answers", seed=1)
    assert set(evaluate(small(answers), n=50)) == {"nll_test", "entropy"}


def test_early_stopping_keeps_the_best_weights(env):
    agent = small(env, schedule=((40, 0.2),), patience=2).learn()
    assert agent.steps_done < 40
    assert agent.steps_done - 1 - agent.best_epoch == agent.epochs_waited == 2
    assert agent.nll("valid") == pytest.approx(agent.best_loss, abs=1e-6)
    before, steps = weights_of(agent), agent.steps_done
    assert (weights_of(agent.learn()) == before).all()
    assert agent.learn(2).steps_done == steps + 2
    assert agent.nll("valid") == pytest.approx(agent.best_loss, abs=1e-6)


def test_the_learning_rate_follows_its_schedule(env):
    settings = MLESettings(schedule=((2, 0.5), (3, 0.1)))
    assert [settings.learning_rate(e) for e in range(7)] == [0.5, 0.5, 0.1, 0.1, 0.1, 0.1, 0.1]
    assert settings.epochs == 5
    assert MLE(env, preset="paper").settings.epochs == 120
    agent = small(env, schedule=((1, 1e-2), (1, 1e-30)), early_stopping=False).learn(1)
    before = weights_of(agent)
    assert torch.allclose(weights_of(agent.learn(1)), before, atol=1e-6)


def test_one_seed_one_result_and_another_seed_another(env):
    first, again, other = (weights_of(small(env, seed=s).learn(2)) for s in (3, 3, 4))
    assert (first == again).all()
    assert (first != other).any()
    torch.manual_seed(1)
    assert (weights_of(small(env, seed=3).learn(2)) == first).all()


def test_a_resumed_run_equals_an_uninterrupted_one(env, tmp_path):
    whole = small(env, folder=tmp_path / "whole").learn()
    assert MLE(env, folder=tmp_path / "whole", progress=False, **SMALL).seed == 0
    for _ in range(3):
        parts = small(env, folder=tmp_path / "parts").learn(2)
    assert parts.steps_done == whole.steps_done == 6
    assert (weights_of(parts) == weights_of(whole)).all()
    loaded = MLE.load(tmp_path / "whole", env)
    assert (weights_of(loaded) == weights_of(whole)).all()
    assert (loaded.sample(5, seed=0).tokens == whole.sample(5, seed=0).tokens).all()
    assert loaded.settings == whole.settings
    columns = [read_column(path, "valid/nll") for path in (tmp_path / "whole", tmp_path / "parts")]
    assert len(columns[0]) == 6
    assert columns[0] == columns[1]


def read_column(folder, name):
    """Read the values of a metric, one per step."""
    with (folder / "progress.csv").open() as file:
        return [row[name] for row in csv.DictReader(file)]


PROGRAM = """
import sys, gymnasium as gym, text_gym
from agents.mle import MLE
env = gym.make("TextGen-v0", task=text_gym.make_task("grammar", train_size=2000, valid_size=100, test_size=100))
agent = MLE(env, seed=5, folder=sys.argv[1], progress=False, embedding=8, hidden=8, schedule=((12, 1e-2),), threads=1)
agent.learn()
print(agent.steps_done, repr(agent.nll("test")), agent.sample(3, seed=0).texts)
"""


def test_a_killed_run_goes_on_to_the_same_numbers(tmp_path):
    """Kill the run three times, each soon after a new checkpoint; the fourth time it may finish."""
    whole = run(PROGRAM, tmp_path / "whole")
    latest, kills = tmp_path / "killed" / "latest.json", 0
    while True:
        seen = latest.read_text() if latest.exists() else ""
        process = Program(PROGRAM, tmp_path / "killed")
        if kills == 3:
            break
        while process.poll() is None and (not latest.exists() or latest.read_text() == seen):
            time.sleep(0.001)
        time.sleep(0.03 * kills)
        process.kill()
        kills += 1
    assert process.wait() == 0
    assert process.output == whole


def test_metrics_go_where_log_says(env, tmp_path, capsys):
    small(env, folder=tmp_path, log=("json", "stdout")).learn(1)
    assert sorted(p.name for p in tmp_path.glob("progress*")) == ["progress.json"]
    assert "valid/" in capsys.readouterr().out


def test_metrics_go_to_the_console_without_a_folder(env, capsys):
    small(env, log="stdout").learn(1)
    assert "valid/" in capsys.readouterr().out


def test_metrics_go_to_tensorboard(env, tmp_path, monkeypatch):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    agent = small(env, folder=tmp_path, log=("csv", "tensorboard")).learn(2)
    read = events.EventAccumulator(str(tmp_path)).Reload()
    logged = [event.value for event in read.Scalars("valid/nll")]
    assert logged == pytest.approx([float(v) for v in read_column(tmp_path, "valid/nll")], rel=1e-6)
    assert agent.steps_done == len(logged) == 2
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(DependencyError, match="pip install tensorboard"):
        small(env, log="tensorboard")
    with pytest.raises(OptionError, match="needs a folder"):
        small(env, log="log")
    with pytest.raises(OptionError, match="Did you mean 'csv'"):
        small(env, log="cvs")


def test_ctrl_c_ends_after_the_step(env, tmp_path):
    class Interrupt(BaseCallback):
        def _on_step(self):
            if self.model.steps_done == 2:
                os.kill(os.getpid(), signal.SIGINT)
            return True

    handler = signal.getsignal(signal.SIGINT)
    agent = small(env, folder=tmp_path)
    with pytest.raises(
        KeyboardInterrupt, match=r"stopped after step 2 and saved in .*; run the same command to resume it"
    ):
        agent.learn(callback=Interrupt())
    assert agent.steps_done == 2
    assert signal.getsignal(signal.SIGINT) is handler
    assert small(env, folder=tmp_path).steps_done == agent.steps_done


def test_callbacks_of_every_kind(env, tmp_path):
    seen = []
    agent = small(env).learn(4, callback=lambda local, _: seen.append(local["self"].steps_done) or len(seen) < 2)
    assert (seen, agent.steps_done) == ([1, 2], 2)
    trained = small(env).learn(2, callback=[CheckpointCallback(1, str(tmp_path), "mle")])
    assert (weights_of(MLE.load(tmp_path / "mle_2_steps.zip", env)) == weights_of(trained)).all()
    scored = EvalCallback(gym.make("TextGen-v0", task=env.unwrapped.task, reward="length"), eval_freq=1, verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small(env).learn(2, callback=(scored,))
    assert scored.last_mean_reward >= 0


def test_predict_draws_or_takes_the_likeliest(env):
    agent = small(env, initial_std=1.0).learn(1)
    observation, _ = env.reset(options={"prefix": "the dogs"})
    policy = agent.policy.eval()
    logits, hidden = policy.start(1)
    for token in env.unwrapped.task.encode("the dogs"):
        logits, hidden = policy.step(torch.tensor([token]), hidden)
    action, state = agent.predict(observation, deterministic=True)
    assert (action, state) == (logits.argmax().item(), None)
    many = np.repeat(observation[None], 4000, axis=0)
    drawn, _ = agent.predict(many)
    probabilities = logits[0].softmax(0).detach().numpy()
    assert_counts_fit(np.bincount(drawn, minlength=len(probabilities)), 4000 * probabilities)
    masked = gym.make("TextGen-v0", task=env.unwrapped.task, min_length=21 - 1, banned=[5])
    writer = small(masked)
    observation, _ = masked.reset()
    assert not set(writer.predict(np.repeat(observation[None], 3000, axis=0))[0].tolist()) & {0, 5}


@pytest.mark.filterwarnings("ignore:Evaluation environment is not wrapped")
def test_stable_baselines3_evaluates_it(env):
    mean, _ = evaluate_policy(small(env).learn(1), gym.make("TextGen-v0", task=env.unwrapped.task, reward="length"), 3)
    assert mean >= 0


def test_prompts_are_learned_from():
    env = gym.make("TextGen-v0", task=text_gym.make_task("answers", size=100))
    agent = MLE(env, seed=0, progress=False, dropout=0.0, schedule=((90, 1e-2),), early_stopping=False, hidden=64)
    before = agent.nll("train")
    assert agent.learn().nll("train") < 0.5 * before
    batch = agent.sample(200, seed=0)
    assert batch.prompts[0].endswith("?")
    right = np.mean([tuple(s) in e.references for s, e in zip(batch.sentences, batch.examples, strict=True)])
    assert right > 0.3
    observation, _ = env.reset(seed=0)
    assert agent.predict(observation)[0] in env.action_space


def test_mistakes_are_told(env, tmp_path):
    for options, words in [
        ({"preset": "papper"}, "Did you mean 'paper'"),
        ({"hiden": 3}, "no hyperparameter 'hiden'.*Did you mean 'hidden'"),
        ({"hidden": 0}, "hidden must be"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"schedule": ()}, "schedule"),
        ({"schedule": ((3, -1.0),)}, "schedule"),
        ({"seed": -1}, "seed must be"),
        ({"threads": 0}, "threads must be"),
        ({"early_stopping": "no"}, "True or False"),
        ({"schedule": 5}, "schedule=5 is not a sequence"),
        ({"initial_std": -1}, "initial_std"),
    ]:
        with pytest.raises(OptionError, match=words):
            MLE(env, progress=False, **options)
    with pytest.raises(OptionError, match="TextGen-v0 environment"):
        MLE(gym.make("CartPole-v1"))
    small(env, folder=tmp_path).learn(1)
    for other, words in [({"hidden": 9}, "the settings of the run.*hidden was"), ({"seed": 1}, "the seed of the run")]:
        with pytest.raises(CheckpointError, match=words):
            small(env, folder=tmp_path, **other)
    with pytest.raises(CheckpointError, match="the task of the run"):
        MLE.load(tmp_path, gym.make("TextGen-v0", task="answers"))
    (path,) = tmp_path.glob("step-*/state.json")
    state = json.loads(path.read_text(encoding="utf-8"))
    assert state["state"]["settings"].pop("dtype") == "auto"  # as in a checkpoint of a version without this setting
    path.write_text(json.dumps(state), encoding="utf-8")
    assert MLE.load(tmp_path, env).steps_done == 1
    with pytest.raises(OptionError, match="'valid' split"):
        small(gym.make("TextGen-v0", task="grammar(valid_size=0)")).nll("valid")


def test_training_that_diverges_is_told_and_not_saved(env, tmp_path):
    agent = small(env, folder=tmp_path).learn(1)
    with torch.no_grad():
        agent.policy.embed.weight.fill_(float("nan"))
        agent.resting = False
    with pytest.raises(TrainingError, match="diverged"):
        agent.learn(1)
    with pytest.raises(TrainingError, match="not finite"):
        agent.sample(3)
    assert torch.isfinite(weights_of(small(env, folder=tmp_path))).all()


def test_a_run_within_a_run_stops_at_the_first_ctrl_c_and_ends_at_the_second():
    handler = signal.getsignal(signal.SIGINT)
    with stop_on_interrupt() as outer, stop_on_interrupt() as inner:
        assert inner is outer
        os.kill(os.getpid(), signal.SIGINT)
        assert outer.is_set()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is handler
    with stop_on_interrupt() as again:
        assert not again.is_set()


def test_a_gradient_that_is_not_finite_is_refused_though_the_loss_is(env):
    agent = small(env)
    with pytest.raises(TrainingError, match="diverged"):
        agent.descend((agent.policy.embed.weight * 0).sqrt().sum())


def test_asked_to_go_on_it_waits_again_for_an_improvement(env):
    agent = small(env, schedule=((40, 0.2),), patience=2).learn()
    assert agent.epochs_waited == 2
    agent.begin_learning(True, threading.Event())
    assert agent.epochs_waited == 0


class OfOnesOwn(Agent):
    """An agent that learns from its own samples."""

    def build(self):
        self.policy = LSTM(len(self.task.vocab), 8, 8)
        self.optimizer = torch.optim.Adam(self.policy.parameters(), lr=1e-2)

    def one_step(self, step):
        self.descend(self.likelihood_loss(self.sample(8)))
        return True


def test_an_agent_of_ones_own_is_a_function_of_its_seed(env, tmp_path):
    """Samples between its steps, or in callbacks, change nothing; and a resumed run equals an uninterrupted one."""
    whole = OfOnesOwn(env, seed=0, progress=False).learn(4)
    assert whole.name == "ofonesown"
    drawn = OfOnesOwn(env, seed=0, progress=False, folder=tmp_path).learn(1)
    drawn.sample(5)
    drawn.learn(1, callback=lambda *_: len(drawn.sample(2)) == 2)
    resumed = OfOnesOwn(env, folder=tmp_path, progress=False).learn(2)
    assert (weights_of(resumed) == weights_of(whole)).all()
    assert (weights_of(OfOnesOwn.load(tmp_path, env)) == weights_of(whole)).all()
    with pytest.raises(OptionError, match=r"give learn\(steps\)"):
        whole.learn()


def test_an_agent_of_ones_own_may_return_nothing_but_must_have_a_policy(env):
    class Silent(OfOnesOwn):
        def one_step(self, step):
            batch = self.sample(8)
            advantages = self.rewards(batch) - self.rewards(batch).mean()
            before = self.log_prob(batch.tokens)
            self.descend(self.likelihood_loss(batch, mean=False, weights=advantages))
            # REINFORCE: sequences with a reward above the mean become more likely, all others less likely.
            assert ((self.log_prob(batch.tokens) - before) * advantages).sum() > 0

    class Empty(OfOnesOwn):
        def build(self):
            pass

    assert Silent(env, seed=0, progress=False).learn(3).steps_done == 3
    with pytest.raises(OptionError, match=r"build\(\) of Empty .* set self.policy"):
        Empty(env)


def test_what_cannot_be_an_environment_or_a_device_is_told(env):
    for wrong in ("TextGen-v0", gym.make("CartPole-v1")):
        with pytest.raises(OptionError, match=r"gym.make\('TextGen-v0'\)"):
            small(wrong)
    with pytest.raises(OptionError, match="device='auto'"):
        small(env, device="qpu")


def test_what_callbacks_draw_is_the_same_after_a_resume(env, tmp_path):
    drawn = {"whole": [], "parts": []}

    def watch(kind):
        return lambda local, _: drawn[kind].append(local["self"].sample(5).texts) or True

    small(env, folder=tmp_path / "whole").learn(4, callback=watch("whole"))
    for _ in range(2):
        small(env, folder=tmp_path / "parts").learn(2, callback=watch("parts"))
    assert drawn["whole"] == drawn["parts"]


@pytest.mark.slow
def test_the_published_oracle(data):
    """The learning curve of the published log with the settings of the paper, and its value after 40 epochs."""
    env = gym.make("TextGen-v0", task="oracle", path=str(data / "seqgan_target_params.pkl"))
    agent = MLE(env, seed=0, preset="paper", progress=False)
    assert evaluate(agent, 3000)["nll_oracle"] == pytest.approx(11.42, abs=0.05)  # the value of uniformly random tokens
    assert evaluate(agent.learn(1), 3000)["nll_oracle"] == pytest.approx(10.2, abs=0.2)  # published: 10.17
    results = evaluate(agent.learn(39))
    assert 8.95 <= results["nll_oracle"] <= 9.15, results
