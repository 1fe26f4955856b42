"""Examples: the one that measures pitch, against notes worked out by hand."""

import sys
from pathlib import Path

import numpy as np
import pytest

import text_gym
from text_gym.rewards import Scorer

PATH = Path(__file__).parents[1] / "examples" / "tunes.py"
sys.path.insert(0, str(PATH.parent))
from tunes import KEY, accidentals, pitches  # noqa: E402


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
    scores = Scorer(f"{PATH}:PitchNearness", task)(asked).total
    for text, score in zip(asked.texts, scores, strict=True):
        notes = [
            [(note - tune[i]) ** 2 for tune in real if len(tune) > i]
            for i, note in enumerate(pitches(text)[: max(map(len, real))])
        ]
        assert score == pytest.approx(-np.mean([np.mean(pairs) for pairs in notes]))
