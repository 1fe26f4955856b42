"""A reward and a measure of one's own for tunes in ABC notation: how far their pitch is from that of real ones.

In a comparison, where a corpus of tunes is in tunes.abc:

    text-gym compare mle pg-bleu seqgan --task tunes.abc --also examples/tunes.py:PitchNearness

The mean squared difference is the one that music generation by SeqGAN was reported with. It is no measure of
a good tune: one that stays on the mean pitch comes nearer to real tunes than they come to each other.
"""

import re

import numpy as np

from text_gym import Reward, Task
from text_gym.sequences import Batch

NOTE = re.compile(r"([_^=]*)([A-Ga-g])([,']*)")
KEY = re.compile(r"\[?K:\s*([A-G])([#b]?)\s*(\w*)")
BAR = re.compile(r"^[|:\[\]]")
SEMITONES = dict(zip("CDEFGAB", (0, 2, 4, 5, 7, 9, 11), strict=True))
FIFTHS = dict(zip("FCGDAEB", range(-1, 6), strict=True))  # sharps of the major key on each letter
MODES = {"min": -3, "m": -3, "aeo": -3, "dor": -2, "mix": -1, "lyd": 1, "phr": -4, "loc": -5}


def accidentals(key: re.Match[str]) -> dict[str, int]:
    """By how much a key raises each letter."""
    letter, sign, mode = key.groups()
    sharps = FIFTHS[letter] + 7 * ((sign == "#") - (sign == "b")) + MODES.get(mode[:3].lower(), 0)
    return {each: (sharps - i + 6) // 7 for i, each in enumerate("FCGDAEB")}  # in the order in which keys raise them


def pitches(text: str) -> list[int]:
    """The notes of a tune in semitones above middle C, chord symbols and rests left out.

    >>> pitches('[M:4/4] [K:G] "G" G2 F ^C C | C c')
    [7, 6, 1, 1, 0, 12]
    """
    raised: dict[str, int] = {}
    in_bar: dict[str, int] = {}
    found = []
    for word in text.split():
        if key := KEY.match(word):
            raised = accidentals(key)
        if BAR.match(word):
            in_bar = {}
        if word[0] in '"[!' or ":" in word[:2]:
            continue
        for sign, letter, octave in NOTE.findall(word):
            pitch = letter.upper() + octave + letter
            if sign:
                in_bar[pitch] = sign.count("^") - sign.count("_")
            shift = in_bar.get(pitch, raised.get(letter.upper(), 0))
            octaves = letter.islower() + octave.count("'") - octave.count(",")
            found.append(SEMITONES[letter.upper()] + 12 * octaves + shift)
    return found


class PitchNearness(Reward):
    """Minus the mean squared difference of pitch from real tunes, note by note, in semitones squared."""

    name = "pitch_nearness"

    def prepare(self, task: Task) -> None:
        """The mean pitch, and its mean square, of the first, second, ... note of the test split's tunes."""
        tunes = [pitches(text) for text in task.batch("test").texts]
        longest = max(map(len, tunes))
        columns = [np.array([tune[i] for tune in tunes if len(tune) > i]) for i in range(longest)]
        self.mean = np.array([column.mean() for column in columns])
        self.square = np.array([(column.astype(float) ** 2).mean() for column in columns])

    def score(self, batch: Batch) -> np.ndarray:
        """Each tune against all real ones."""
        return np.array([self._nearness(pitches(text)) for text in batch.texts])

    def _nearness(self, tune: list[int]) -> float:
        own = np.array(tune[: len(self.mean)], dtype=float)
        if not len(own):
            return -float(self.square[0])  # no note at all is as far as silence at middle C
        differences = own**2 - 2 * own * self.mean[: len(own)] + self.square[: len(own)]
        return -float(differences.mean())


if __name__ == "__main__":
    print(pitches('[M:6/8] [K:D] d3 A2 F | "A" E2 A c2 e | "D" d6 |]'))
