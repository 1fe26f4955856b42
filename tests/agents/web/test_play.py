"""The page to play with an agent tells the truth about it, and takes nothing that it does not know."""

import itertools
import json
import math
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from agents.common.credit import prefix_values
from agents.experiments.run import make_model, prepare_run
from agents.experiments.settings import RunSpec
from agents.web.play import Player
from agents.web.server import LocalServer
from tests.helpers.browser import BROWSER, OUTSIDE, PALE, Browser
from tests.helpers.comparisons import OPTIONS
from tests.helpers.requests import ask, call
from text_gym.errors import OptionError
from text_gym.rewards import Scorer
from text_gym.sequences import make_batch

HOSTILE = "</script><script>alert(1)</script>"
ORACLE = "oracle(vocab_size=4, max_length=3, train_size=64, valid_size=16, test_size=16)"
NETWORK = {"embedding": 8, "hidden": 8, "dropout": 0.0}


def train(folder, name, task, options, reward=None, steps=1):
    """A run of one step."""
    spec = RunSpec(name, name, 0, str(task), reward, options=options, device="cpu")
    prepare_run(folder, spec)
    make_model(spec, folder).learn(steps)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """SeqGAN on an oracle of four tokens and three places."""
    options = OPTIONS["seqgan"] | {"pretrain_epochs": 1, "initial_std": 1.0}
    return train(tmp_path_factory.mktemp("run"), "seqgan", ORACLE, options)


@pytest.fixture(scope="module")
def player(run):
    return Player(run)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """An agent of hostile words, whose sequences have an end."""
    folder = tmp_path_factory.mktemp("words")
    corpus = folder / "lines.txt"
    corpus.write_text(f"a b {HOSTILE}\nb a &amp; <b>c</b>\na <img/src=x> b\n" * 4, encoding="utf-8")
    return Player(train(folder / "run", "mle", corpus, NETWORK), rewards=["bleu(n=2)"])


@pytest.fixture(scope="module")
def answering(tmp_path_factory):
    """An agent that answers prompts, hostile ones among them."""
    folder = tmp_path_factory.mktemp("prompts")
    rows = [{"prompt": f"say {word} {i}", "references": [word]} for i in range(20) for word in ("yes", "no", HOSTILE)]
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Player(train(folder / "run", "mle", data, NETWORK))


@pytest.fixture(scope="module")
def every(player):
    """All sequences of the oracle, with their probabilities under the agent and their rewards."""
    tokens = np.array(list(itertools.product(range(4), repeat=3)))
    batch = make_batch(tokens, None, player.vocab)
    probabilities = np.exp(player.agent.log_prob(tokens))
    assert probabilities.sum() == pytest.approx(1, abs=1e-5)
    return tokens, probabilities, player.agent.rewards(batch)


def test_the_next_tokens_are_those_of_the_exact_distribution(player, every):
    tokens, probabilities, _ = every
    for prefix in ([], [2], [3, 1]):
        inside = (tokens[:, : len(prefix)] == prefix).all(axis=1)
        exact = [probabilities[inside & (tokens[:, len(prefix)] == i)].sum() for i in range(4)]
        exact = np.array(exact) / probabilities[inside].sum()
        answer = player.calls["/next"]({"tokens": prefix})
        found = {token["id"]: token["probability"] for token in answer["top"]}
        assert [found[i] for i in range(4)] == pytest.approx(exact, abs=1e-5)
        assert list(found) == sorted(range(4), key=lambda i: -exact[i])
        entropy = -(exact * np.log(exact)).sum()
        assert (answer["entropy"], answer["choices"]) == pytest.approx((entropy, math.exp(entropy)), abs=1e-4)
        assert answer["rest"] == {"tokens": 0, "probability": pytest.approx(0, abs=1e-12)}
        cold = player.calls["/next"]({"tokens": prefix, "temperature": 0.5})["top"]
        assert [token["probability"] for token in cold] == pytest.approx(
            sorted(exact**2 / (exact**2).sum(), reverse=True), abs=1e-5
        )
        two = player.calls["/next"]({"tokens": prefix, "top_k": 2})["top"]
        best = sorted(exact, reverse=True)[:2]
        assert [token["probability"] for token in two] == pytest.approx([*(np.array(best) / sum(best)), 0, 0], abs=1e-5)


def test_completions_are_what_the_agent_samples(player):
    agent = player.agent
    found = player.calls["/completions"]({"tokens": [], "n": 5, "seed": 7, "temperature": 0.8})
    batch = agent.sample(5, seed=7, temperature=0.8)
    assert [its["text"] for its in found["completions"]] == batch.texts
    assert [its["reward"] for its in found["completions"]] == pytest.approx(agent.rewards(batch))
    assert [its["log_prob"] for its in found["completions"]] == pytest.approx(
        agent.log_prob(batch.tokens, batch.lengths)
    )
    assert found["mean"] == pytest.approx(agent.rewards(batch).mean())
    assert found["seed"] == 7
    later = player.calls["/completions"]({"tokens": [2], "n": 9, "reward": "length"})
    assert {its["text"].split()[0] for its in later["completions"]} == {player.vocab.tokens[2]}
    assert later["mean"] == 3
    again = player.calls["/completions"]({"tokens": [2], "n": 9, "reward": "length", "seed": later["seed"]})
    assert again == later


def test_a_completion_and_its_score_have_one_log_probability(words):
    """Also where the environment bans a token, as it does the one for unknown words."""
    assert words.agent.restricts
    for its in words.calls["/completions"]({"n": 4, "seed": 5})["completions"]:
        rows = words.calls["/score"]({"tokens": [token["id"] for token in its["tokens"]]})["rows"]
        assert rows[0]["name"] == "log-probability"
        assert rows[0]["value"] == pytest.approx(its["log_prob"], abs=1e-6)
        shown = [
            {token["id"]: token["probability"] for token in words.calls["/next"]({"tokens": ids})["top"]}
            for ids in itertools.accumulate(([token["id"]] for token in its["tokens"][:-1]), initial=[])
        ]
        chosen = [chances[token["id"]] for chances, token in zip(shown, its["tokens"], strict=True)]
        assert sum(map(math.log, chosen)) == pytest.approx(its["log_prob"], abs=1e-4)


def test_credit_is_the_mean_of_the_rollouts_after_a_token_less_that_before_it(player, every):
    tokens, probabilities, rewards = every
    asked = {"tokens": [1, 3, 0], "rollouts": 64, "seed": 3}
    found = player.calls["/credit"](asked)
    own = dict(zip(map(tuple, tokens.tolist()), rewards, strict=True))
    text = {tuple(row): player.task.decode(row) for row in tokens.tolist()}
    assert found["reward"] == pytest.approx(own[1, 3, 0])
    batch = make_batch([[1, 3, 0]], None, player.vocab)
    values = prefix_values(player.agent, batch, 64, 3)[0]
    for t, token in enumerate(found["tokens"]):
        rollouts = found["completions"][t]
        assert len(rollouts) == 64
        assert (
            token["before"] == pytest.approx(np.mean([its["reward"] for its in rollouts])) == pytest.approx(values[t])
        )
        assert token["after"] == pytest.approx(values[t + 1])
        assert token["credit"] == token["after"] - token["before"]
        for its in rollouts:
            whole = [*[1, 3, 0][:t], *(player.vocab.ids[word] for word in its["rest"].split())]
            assert its["reward"] == pytest.approx(own[tuple(whole)]), text
        inside = (tokens[:, :t] == [1, 3, 0][:t]).all(axis=1)
        weights = probabilities[inside] / probabilities[inside].sum()
        mean = (weights * rewards[inside]).sum()
        spread = math.sqrt((weights * (rewards[inside] - mean) ** 2).sum() / 64)
        assert abs(token["before"] - mean) < 5 * spread + 1e-6
    assert sum(token["credit"] for token in found["tokens"]) == pytest.approx(found["reward"] - values[0])


def test_scores_are_those_of_the_rewards_themselves(player):
    batch = make_batch([[1, 3, 0]], None, player.vocab)
    rows = {
        row["name"]: row
        for row in player.calls["/score"]({"tokens": [1, 3, 0], "names": ["length", "rouge_l"]})["rows"]
    }
    discriminator = player.agent.discriminator
    real = discriminator.logits(discriminator.rows(batch)).softmax(dim=1)[0, 1]
    expected = {
        "log-probability": player.agent.log_prob([[1, 3, 0]])[0],
        "reward of the run": discriminator.score(batch)[0],
        "discriminator": float(real),
        "reward of the task": Scorer("bleu", player.task)(batch).total[0],
        "source log-probability": player.task.log_prob([[1, 3, 0]])[0],
        "length": 3,
    }
    assert {name: row["value"] for name, row in rows.items() if "value" in row} == pytest.approx(expected, abs=1e-6)
    assert "prompts" in rows["rouge_l"]["problem"]


def test_a_sequence_that_has_not_ended_is_scored_as_if_it_ended_there(words, player):
    a, b = (words.vocab.ids[word] for word in "ab")
    found = words.calls["/score"]({"tokens": [a, b], "names": ["length", "bleu(n=2)"]})
    assert (found["text"], found["ended_here"]) == ("a b", True)
    rows = {row["name"]: row.get("value") for row in found["rows"]}
    ended = make_batch([[a, b, words.vocab.eos]], None, words.vocab)
    assert rows["length"] == 2
    assert rows["bleu(n=2)"] == pytest.approx(Scorer("bleu(n=2)", words.task)(ended).total[0])
    assert rows["log-probability"] == pytest.approx(words.agent.log_prob(ended.tokens, as_sampled=True)[0])
    assert words.calls["/credit"]({"tokens": [a, b], "rollouts": 2})["tokens"][-1]["id"] == words.vocab.eos
    with pytest.raises(OptionError, match="1 of 3 tokens, and only finished ones have a reward; complete it"):
        player.calls["/score"]({"tokens": [1]})


def test_typed_words_are_appended_and_an_end_is_an_end(words):
    a, b = (words.vocab.ids[word] for word in "ab")
    found = words.calls["/next"]({"tokens": [a], "text": f"b {HOSTILE}"})
    assert [token["text"] for token in found["tokens"]] == ["a", "b", HOSTILE]
    assert not found["ended"]
    ended = words.calls["/next"]({"tokens": [a, words.vocab.eos]})
    assert ended["ended"]
    assert "top" not in ended
    for late in ({"tokens": [a, words.vocab.eos, b]}, {"tokens": [a, words.vocab.eos], "text": "b"}):
        with pytest.raises(OptionError, match="the sequence has ended; go back"):
            words.calls["/next"](late)


def test_answers_are_those_to_the_prompt(answering):
    task = answering.task
    by_number, by_text = ({"prompt": prompt, "tokens": []} for prompt in (0, task.decode(task.test[0].prompt)))
    assert answering.calls["/next"](by_number) == answering.calls["/next"](by_text)
    assert answering.calls["/next"](by_number) != answering.calls["/next"]({"prompt": "no no", "tokens": []})
    found = answering.calls["/completions"](by_number | {"n": 3, "seed": 2})
    batch = answering.agent.sample(seed=2, prompts=[task.test[0]] * 3)
    assert [its["text"] for its in found["completions"]] == batch.texts
    assert [its["reward"] for its in found["completions"]] == pytest.approx(
        Scorer(task.default_reward, task)(batch).total
    )
    unknown = answering.calls["/completions"]({"prompt": "no no", "tokens": [], "n": 2})
    assert unknown["mean"] is None
    assert "reference" in unknown["problem"]


@pytest.mark.parametrize(
    ("path", "asked", "said"),
    [
        ("/next", {"tokens": "abc"}, "tokens must be a list of ids in 0..3"),
        ("/next", {"tokens": [4]}, "tokens must be a list of ids"),
        ("/next", {"tokens": [-1]}, "tokens must be a list of ids"),
        ("/next", {"tokens": [True]}, "tokens must be a list of ids"),
        ("/next", {"tokens": [1.0]}, "tokens must be a list of ids"),
        ("/next", {"tokens": [0] * 4}, "4 tokens, and a sequence has at most 3"),
        ("/next", {"tokens": [], "text": 5}, "text must be at most"),
        ("/next", {"tokens": [], "text": "nonsense"}, "'nonsense' is not in this vocabulary"),
        ("/next", {"tokens": [], "temperature": "hot"}, "temperature"),
        ("/next", {"tokens": [], "temperature": 0}, "needs temperature"),
        ("/next", {"tokens": [], "top_p": 2}, "0 < top_p <= 1"),
        ("/next", {"tokens": [], "top_k": -1}, "top_k"),
        ("/completions", {"tokens": [], "n": 65}, "n must be a whole number of at most 64, not 65"),
        ("/completions", {"tokens": [], "n": 0}, "n must be a whole number of at least 1, not 0"),
        ("/completions", {"tokens": [], "seed": -1}, "seed must be a whole number of at least 0, not -1"),
        ("/completions", {"tokens": [], "seed": 1e300}, "seed"),
        ("/completions", {"tokens": [1, 2, 3]}, "the sequence has ended"),
        ("/completions", {"tokens": [], "reward": "os:getcwd"}, "there is no reward 'os:getcwd' here"),
        ("/completions", {"tokens": [], "reward": "bleu(references='/etc/passwd')"}, "there is no reward"),
        ("/credit", {"tokens": [1, 2, 3], "rollouts": 10**9}, "rollouts must be a whole number of at most 64"),
        ("/credit", {"tokens": [1, 2, 3], "reward": ["bleu"]}, "there is no reward"),
        ("/score", {"tokens": [1, 2, 3], "names": "bleu"}, "names must be a list"),
        ("/score", {"tokens": [1, 2, 3], "names": ["classifier"]}, "there is no reward 'classifier'"),
        ("/score", {"tokens": [1, 2, 3], "names": [{"bleu": 1}]}, "there is no reward"),
    ],
)
def test_what_the_page_would_not_send_is_refused_in_a_line(served, path, asked, said):
    server, token = served
    status, answer = call(server, token, path, asked)
    assert (status, list(answer)) == (400, ["error"])
    assert said in answer["error"]


@pytest.fixture(scope="module")
def served(player):
    with LocalServer(player.page, player.calls, port=0) as server:
        yield server, re.search('data-token="(.*?)"', ask(server)[2])[1]


def test_calls_at_the_same_time_do_not_disturb_each_other(served):
    server, token = served
    seeds = [1, 2, 3, 4]

    def complete(seed):
        return call(server, token, "/completions", {"tokens": [], "n": 8, "seed": seed})

    alone = list(map(complete, seeds))
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(complete, seeds)) == alone


def test_playing_changes_nothing_in_the_folder(served, run):
    server, token = served
    files = lambda: {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in run.rglob("*")}  # noqa: E731
    before = files()
    assert call(server, token, "/credit", {"tokens": [1, 2, 3], "rollouts": 2})[0] == 200
    assert files() == before


def test_runs_that_are_no_agent_or_name_code_are_refused(tmp_path):
    prepare_run(tmp_path / "real", RunSpec("real", "real", 0, ORACLE, kind="reference"))
    with pytest.raises(OptionError, match=r"real in .* is no agents\.Agent, .* text-gym sample prints its sequences"):
        Player(tmp_path / "real")
    prepare_run(tmp_path / "mine", RunSpec("mine", "tests.helpers.own_agents:Plain", 0, ORACLE))
    with pytest.raises(OptionError, match=r"tests\.helpers\.own_agents:Plain"):
        Player(tmp_path / "mine")


@pytest.mark.parametrize("which", ["words", "answering"])
def test_hostile_texts_stay_texts_in_the_page(which, request):
    text = request.getfixturevalue(which).page("n", "t")
    assert text.count("<script") == text.count("</script>") == 1
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in text
    assert "<img" not in text


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if BROWSER is None:
        pytest.skip("no Chromium here")
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


def play_through(browser):
    """Type a word, generate completions, use one, and ask for its credit and scores."""
    browser.until("document.querySelector('#next button')")
    browser.run("document.querySelector('#word').value = 'a'; document.querySelector('#typing').requestSubmit()")
    browser.until("document.querySelectorAll('#sentence button').length == 1")
    browser.run("document.querySelector('#completing').requestSubmit()")
    browser.until("document.querySelector('#completions li')")
    browser.run("document.querySelector('#completions .link').click()")
    browser.until("document.querySelector('#scores tr')")
    browser.run("document.querySelector('#crediting').requestSubmit()")
    browser.until("document.querySelector('#rollouts-of li')")
    browser.run("document.querySelector('details').open = true")


def assert_nothing_went_wrong(browser):
    assert browser.run("return document.querySelector('#problem').hidden")
    assert browser.seen("Runtime.exceptionThrown") == []
    assert browser.seen("Log.entryAdded") == []
    assert browser.seen("Page.javascriptDialogOpening") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_the_page_fits_and_runs_without_errors(browser, words, width, scheme):
    with LocalServer(words.page, words.calls, port=0) as server:
        browser.open(server.address, width, scheme)
        play_through(browser)
        assert browser.run("return document.documentElement.scrollWidth") <= width
        assert browser.run(OUTSIDE) == []
        assert browser.run(PALE) == []
        assert_nothing_went_wrong(browser)
        asked = {event["request"]["url"] for event in browser.seen("Network.requestWillBeSent")}
        assert all(url.startswith((server.address, "data:")) for url in asked)


def test_the_page_is_played_by_keyboard(browser, words):
    focused = "return document.activeElement.textContent"
    with LocalServer(words.page, words.calls, port=0) as server:
        browser.open(server.address, 1400, "light")
        browser.until("document.querySelector('#next button')")
        names = browser.run("return [...document.querySelectorAll('#next .name')].map((one) => one.textContent)")
        browser.run("document.querySelector('#clear').focus()")
        browser.press("Tab")
        assert browser.run(focused).startswith(names[0])
        assert browser.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
        browser.press("ArrowDown")
        browser.press("ArrowDown")
        assert browser.run(focused).startswith(names[2])
        browser.press("ArrowUp")
        assert browser.run(focused).startswith(names[1])
        browser.press("Enter")
        browser.until("document.querySelectorAll('#sentence button').length == 1")
        assert browser.run("return document.querySelector('#sentence button').textContent") == names[1]
        assert browser.run("return document.activeElement.closest('#next') != null")
        browser.run("document.querySelector('#word').focus()")
        for key in "a b":
            browser.call("Input.insertText", text=key)
        browser.press("Enter")
        browser.until("document.querySelectorAll('#sentence button').length == 3")
        assert browser.run("return document.activeElement.id + document.activeElement.value") == "word"
        browser.run("document.querySelector('#sentence [tabindex=\"0\"]').focus()")
        browser.press("ArrowLeft")
        browser.press("ArrowLeft")
        browser.press("Enter")
        browser.until("document.querySelectorAll('#sentence button').length == 1")
        browser.run("document.querySelector('#undo').click()")
        browser.until("document.querySelectorAll('#sentence button').length == 3")
        assert_nothing_went_wrong(browser)


def test_the_page_tells_what_is_wrong_and_goes_on(browser, words):
    with LocalServer(words.page, words.calls, port=0) as server:
        browser.open(server.address, 400, "dark")
        browser.until("document.querySelector('#next button')")
        browser.run("document.querySelector('#temperature').value = 0; document.querySelector('#temperature').onchange")
        browser.run("document.querySelector('#temperature').dispatchEvent(new Event('change'))")
        browser.until("!document.querySelector('#problem').hidden")
        assert "needs temperature" in browser.run("return document.querySelector('#problem').textContent")
        browser.run("document.querySelector('#temperature').value = 1")
        browser.run("document.querySelector('#temperature').dispatchEvent(new Event('change'))")
        browser.until("document.querySelector('#problem').hidden")
    browser.run("document.querySelector('#finish').click()")
    browser.until("!document.querySelector('#problem').hidden")
    assert "start text-gym play again" in browser.run("return document.querySelector('#problem').textContent")


def test_prompts_are_chosen_and_typed(browser, answering):
    with LocalServer(answering.page, answering.calls, port=0) as server:
        browser.open(server.address, 400, "light")
        browser.until("document.querySelector('#next button')")
        assert browser.run("return document.documentElement.scrollWidth") <= 400
        assert browser.run(OUTSIDE) == []
        first = browser.run("return document.querySelector('#next').textContent")
        browser.run("document.querySelector('#prompt').value = 'no no'")
        browser.run("document.querySelector('#prompt').dispatchEvent(new Event('change'))")
        browser.until(f"document.querySelector('#next').textContent != {json.dumps(first)}")
        assert browser.run("return document.querySelector('#prompts').value") == ""
        assert_nothing_went_wrong(browser)
