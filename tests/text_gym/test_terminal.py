"""Control characters in texts are escaped before they are printed."""

import json

import gymnasium as gym
import pytest

import text_gym
from agents.cli.main import main
from text_gym.terminal import printable

BELL, RED, TITLE = "\x07", "\x1b[31m", "\x1b]0;owned\x07"


@pytest.mark.parametrize("text", ["naïve 猫 👩‍🚀", "two\nlines\tand a tab", "", "می‌خواهم"])
def test_text_stays_as_it_is(text):
    assert printable(text) == text


def test_what_a_terminal_obeys_is_shown_as_its_escape():
    assert printable(f"{RED}a{BELL}\rb\x9bc\x7f") == r"\x1b[31ma\x07\rb\x9bc\x7f"
    assert printable("\u202eabc\u2066\ud800\u2028") == r"\u202eabc\u2066\ud800\u2028"


@pytest.fixture
def hostile(write):
    """A corpus whose tokens contain control sequences."""
    lines = [{"prompt": f"ask{TITLE} {i}", "reference": f"a{RED}b {i} c{BELL}"} for i in range(9)]
    return write("hostile.jsonl", "\n".join(map(json.dumps, lines)))


def test_no_command_prints_what_a_terminal_obeys(hostile, capsys, write):
    assert main(["sample", "--task", f"{hostile}(test=0.4)", "--n", "2"]) == 0
    out = capsys.readouterr().out
    assert r"ask\x1b]0;owned\x07" in out
    assert not {"\x1b", "\x07"} & set(out)
    answers = write("answers.txt", f"a{RED}b 1 c{BELL}\n")
    assert main(["score", str(answers), "--task", f"{hostile}(test=0.4)", "--reward", "length"]) == 0
    assert r"a\x1b[31mb 1 c\x07" in capsys.readouterr().out
    assert main(["sample", "--task", f"no{RED}task"]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_no_environment_prints_what_a_terminal_obeys(hostile, capsys):
    env = gym.make("TextGen-v0", task=str(hostile), test=0, render_mode="human", reward="constant").unwrapped
    env.reset(seed=0, options={"prompt_index": 0})
    token = env.rules.vocab.ids[f"a{RED}b"]
    env.step(token)
    out = capsys.readouterr().out
    assert out.endswith(r"\x07 0 -> a\x1b[31mb")
    assert not {"\x1b", "\x07"} & set(out)
    envs = gym.make_vec("TextGen-v0", num_envs=1, task=str(hostile), test=0, render_mode="ansi", reward="constant")
    envs.reset(seed=0)
    envs.step([token])
    assert envs.render() == (r"a\x1b[31mb",)
    alone = gym.make("TextGen-v0", task=str(hostile), test=0, render_mode="ansi", reward="constant").unwrapped
    alone.reset(seed=0)
    alone.step(token)
    assert alone.render() == r"a\x1b[31mb"
    assert alone.text == f"a{RED}b"  # unescaped outside of rendering
    assert text_gym.make_task(str(hostile), test=0).decode([token]) == alone.text
