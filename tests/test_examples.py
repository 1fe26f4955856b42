"""Examples as a person runs them; the one that measures pitch also against notes worked out by hand."""

import sys
from pathlib import Path

import numpy as np
import pytest

import text_gym
from tests.helpers.programs import run
from text_gym.rewards import Scorer

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))
from tunes import KEY, accidentals, pitches  # noqa: E402


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("random_agent.py", ["Random tokens:", "reward", "bleu", "->"]),
        ("custom_reward.py", ["the tiger travels", "alliteration"]),
        ("own_corpus.py", ["Task('rhymes'", ": reward 1.00"]),
        ("vector.py", ["steps per second", "mean BLEU-2"]),
    ],
)
def test_examples(name, words):
    output = run(EXAMPLES / name)
    assert all(word in output for word in words), output


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("train_reinforce.py --updates 2 --train-size 300", ["MLE: BLEU", "PG-BLEU: BLEU"]),
        ("train_seqgan.py --rounds 2 --vocab-size 50 --train-size 200", ["SeqGAN, in nats", "kl_data_model", "0.5"]),
        ("custom_agent.py --steps 3", ["before: reward", "after: reward"]),
        ("conditional.py --epochs 1 --steps 2 --task answers(size=60)", ["supervised:", "reinforce step 2", "->"]),
        ("conditional.py --epochs 1 --steps 1 --learner ppo --task answers(size=60)", ["supervised:", "ppo step 1"]),
        ("nlpo.py --seeds 2 --iterations 1 --vocab-size 30 --train-size 100", ["seed 1", "NLPO - PPO", "over 2 seeds"]),
    ],
)
def test_training_examples(tmp_path, command, words):
    name, *options = command.split()
    output = run(EXAMPLES / name, *options, cwd=tmp_path)
    places = [output.index(word) for word in words]
    assert places == sorted(places)


def test_an_agent_of_ones_own_takes_less_than_40_lines():
    program = (EXAMPLES / "custom_agent.py").read_text(encoding="utf-8")
    own = program[program.index("class BestOfMany") : program.index("def main")]
    assert len(own.strip().splitlines()) < 40


def test_an_example_on_ones_own_file(write):
    path = write("mine.txt", "uno dos\ndos tres\n")
    output = run(EXAMPLES / "own_corpus.py", path)
    assert "Task('mine'" in output
    assert ": reward 1.00" in output


@pytest.mark.parametrize(
    ("key", "sharps", "flats"),
    [
        ("C", "", ""), ("Am", "", ""), ("G", "F", ""), ("D", "FC", ""), ("A", "FCG", ""), ("E", "FCGD", ""),
        ("F", "", "B"), ("Bb", "", "BE"), ("Eb", "", "BEA"), ("Gm", "", "BE"), ("Em", "F", ""), ("Bm", "FC", ""),
        ("Ador", "F", ""), ("Dmix", "F", ""), ("F#m", "FCG", ""), ("Ddor", "", ""),
    ],
)  # fmt: skip
def test_keys(key, sharps, flats):
    raised = accidentals(KEY.match(f"[K:{key}]"))
    assert {letter for letter, by in raised.items() if by == 1} == set(sharps)
    assert {letter for letter, by in raised.items() if by == -1} == set(flats)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[K:C] C D E F G A B c", [0, 2, 4, 5, 7, 9, 11, 12]),
        ("[M:3/4] [K:D] f2 F c'", [18, 6, 25]),
        ('[K:C] "Am" A, z2 A', [-3, 9]),  # chord symbols and rests are no notes
        ("[K:C] ^F F | F", [6, 6, 5]),  # an accidental holds until the bar ends
        ("[K:F] B =B B | B", [10, 11, 11, 10]),
        ("[K:C] (3ABc [1 d :|", [9, 11, 12, 14]),
        ("", []),
    ],
)
def test_pitches(text, expected):
    assert pitches(text) == expected


def test_the_nearness_is_the_mean_over_all_pairs(write):
    tunes = [
        f"X:{i}\nM:4/4\nK:C\n{body}\n\n" for i, body in enumerate(["C D E", "E E G A", "c B", "G", "D C", "A A A"])
    ]
    path = write("tunes.abc", "".join(tunes))
    task = text_gym.make_task(path, valid=0, test=0.5)
    real = [pitches(text) for text in task.batch("test").texts]
    asked = task.batch("train")
    scores = Scorer(f"{EXAMPLES / 'tunes.py'}:PitchNearness", task)(asked).total
    for text, score in zip(asked.texts, scores, strict=True):
        notes = [
            [(note - tune[i]) ** 2 for tune in real if len(tune) > i]
            for i, note in enumerate(pitches(text)[: max(map(len, real))])
        ]
        assert score == pytest.approx(-np.mean([np.mean(pairs) for pairs in notes]))
