"""Recipes of agents, found by name."""

import inspect
from dataclasses import fields

import gymnasium as gym
import pytest

import text_gym  # noqa: F401
from agents import MLE, Agent, Reinforce, SeqGAN
from agents.common.settings import NoSettings
from agents.experiments.recipes import GIVEN, find_agent
from agents.experiments.reference_models import RealData, Uniform
from agents.experiments.registry import AGENTS, register_agent, registered_agents
from tests.helpers.own_agents import OnlySamples, Plain
from text_gym.errors import OptionError, UnknownNameError

MINE = "tests.helpers.own_agents:"
TASK = "oracle(vocab_size=12, max_length=5, train_size=96, valid_size=40, test_size=40)"


@pytest.fixture
def env():
    return gym.make("TextGen-v0", task=TASK)


def test_names_stand_for_agents(env):
    for name, kind in [
        ("mle", MLE),
        ("seqgan", SeqGAN),
        ("pg-bleu", Reinforce),
        ("uniform", Uniform),
        ("real", RealData),
    ]:
        made = find_agent(name).make(env, seed=3, device="cpu", progress=False, folder=None, start=None)
        assert type(made) is kind, name
    assert type(find_agent(MINE + "Plain").make(env, seed=1, progress=False)) is Plain
    assert find_agent("mle(hidden=8)", embedding=4).options == {"hidden": 8, "embedding": 4}
    assert find_agent("mle(hidden=8)", hidden=9).options == {"hidden": 9}
    with pytest.raises(UnknownNameError, match=r"unknown agent 'mlee'\. Did you mean 'mle'"):
        find_agent("mlee")
    with pytest.raises(OptionError, match="name a class or a function that returns an agent"):
        find_agent("tests.agents.experiments.test_recipes:TASK")


def test_rewards_are_the_agents_own_or_nobodys():
    assert find_agent("mle").reward is None
    assert find_agent("reinforce").reward is None
    assert find_agent("reinforce(reward='length')").reward == "length"
    assert "reward" not in find_agent("reinforce(reward='length')").options
    assert find_agent("pg-bleu").reward == find_agent("pg-bleu", "strong").reward == "bleu"
    assert find_agent("pg-bleu", "fast").reward == "bleu(n=3, references=0.4, smoothing=None)"
    assert find_agent("pg-bleu", "paper", reward="validity").reward == "validity"


def test_what_an_agent_does_and_takes():
    names = ("mle", "ss", "reinforce", "pg-bleu", "seqgan", "uniform", "real", MINE + "Plain", MINE + "no_agent")
    classes = [find_agent(name).agent_class for name in names]
    assert [c.learns_from_reward for c in classes] == [False, False, True, True, True, False, False, True, True]
    takes_start = [find_agent(name).takes_start for name in names]
    assert takes_start == [False, False, True, True, True, False, False, True, False]


def test_what_an_agent_begins_with_without_a_warm_start():
    for name, words in [
        ("mle", "random weights"), ("pg-bleu", "random weights"), (MINE + "Plain", "random weights"),
        ("seqgan", "random weights, then its own MLE"), ("uniform", ""), ("real", ""),
        ("reinforce(policy='hf', model='gpt2')", "pretrained gpt2"), (MINE + "Fails", "weights of its own"),
    ]:  # fmt: skip
        assert find_agent(name).begins_with(None) == words, name


def test_settings_are_checked_before_anything_is_made():
    assert find_agent("mle(hidden=7)").settings(None).hidden == 7
    assert find_agent("seqgan").settings("fast") == SeqGAN.choose_settings("fast")
    assert find_agent("uniform").settings("fast") == NoSettings()
    assert find_agent("real").settings("fast") is None
    assert find_agent(MINE + "OnlySamples(times=2)").settings(None) is None
    for name, words in [
        ("mle(hiden=7)", "no hyperparameter 'hiden'. Did you mean 'hidden'"),
        (MINE + "OnlySamples(tims=2)", "no option 'tims'. Did you mean 'times'"),
        (MINE + "OnlySamples(seed=2)", "'seed' is set by the run"),
        (MINE + "Seeded", "hyperparameter 'seed' of agent .* has a reserved name"),
        ("uniform(hidden=3)", "no hyperparameter 'hidden'"),
        ("real(hidden=3)", "no option 'hidden'"),
        ("builtins:dict", "has no signature"),
    ]:
        with pytest.raises(OptionError, match=words):
            find_agent(name).settings(None)


def test_no_agent_of_the_package_has_a_hyper_parameter_that_it_is_given():
    given = set(inspect.signature(Agent.__init__).parameters) - {"self", "env", "hyper"}
    assert given <= GIVEN
    for name in ("mle", "ss", "reinforce", "seqgan"):
        assert not GIVEN & {f.name for f in fields(find_agent(name).settings(None))}


def test_presets_are_those_it_has():
    find_agent("mle").check_preset("strong")
    find_agent("uniform").check_preset(None)
    assert find_agent("mle").preset_of("strong") == "strong"
    assert find_agent(MINE + "Plain").preset_of("strong") is None
    with pytest.raises(OptionError, match=r"mle has no preset 'strog'\. Did you mean 'strong'"):
        find_agent("mle").check_preset("strog")
    with pytest.raises(OptionError, match=r"uniform has no preset 'fast'\.$"):
        find_agent("uniform").check_preset("fast")


def test_an_agent_gets_what_it_has_parameters_for(env, tmp_path):
    seen = {}

    def takes(env, folder=None, start="scratch"):
        seen.update(folder=folder, start=start)
        return OnlySamples(env)

    register_agent("takes", takes)
    try:
        find_agent("takes").make(env, "fast", seed=1, folder=tmp_path, start=None, device="cpu")
        assert seen == {"folder": tmp_path, "start": "scratch"}
        assert "takes" in registered_agents()
        with pytest.raises(OptionError, match="agent 'takes' is already registered"):
            register_agent("takes", takes)
        register_agent("takes", OnlySamples, replace=True)
        assert find_agent("takes").factory is OnlySamples
    finally:
        del AGENTS.entries["takes"]
    assert find_agent("mle").make(env, "fast", seed=5, progress=False).settings == MLE.choose_settings("fast")
    with pytest.raises(OptionError, match="returned 5, which has no method sample"):
        find_agent(MINE + "no_agent").make(env)
