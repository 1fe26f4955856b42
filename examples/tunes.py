"""A custom reward for tunes in ABC notation: the distance of their pitches from those of real tunes.

It is also a metric of a comparison, here for a corpus of tunes in tunes.abc:

    text-gym compare mle pg-bleu seqgan --task tunes.abc --also examples/tunes.py:PitchNearness

SeqGAN's results on music were reported in this mean squared difference. It does not measure the quality of a
tune: a constant tune at the mean pitch is nearer to real tunes than real tunes are to each other.
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
    """Return the shift of each letter in a key, in semitones."""
    letter, sign, mode = key.groups()
    sharps = FIFTHS[letter] + 7 * ((sign == "#") - (sign == "b")) + MODES.get(mode[:3].lower(), 0)
    return {each: (sharps - i + 6) // 7 for i, each in enumerate("FCGDAEB")}  # in the order of sharps in keys


def pitches(text: str) -> list[int]:
    """Return the notes of a tune in semitones above middle C, without chord symbols and rests.

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
        """Compute the mean pitch, and the mean squared pitch, of each note position in the test split."""
        tunes = [pitches(text) for text in task.batch("test").texts]
        longest = max(map(len, tunes))
        columns = [np.array([tune[i] for tune in tunes if len(tune) > i]) for i in range(longest)]
        self.mean = np.array([column.mean() for column in columns])
        self.square = np.array([(column.astype(float) ** 2).mean() for column in columns])

    def score(self, batch: Batch) -> np.ndarray:
        """Compare each tune with all real tunes."""
        return np.array([self._nearness(pitches(text)) for text in batch.texts])

    def _nearness(self, tune: list[int]) -> float:
        own = np.array(tune[: len(self.mean)], dtype=float)
        if not len(own):
            return -float(self.square[0])  # score a tune without notes like one middle C
        differences = own**2 - 2 * own * self.mean[: len(own)] + self.square[: len(own)]
        return -float(differences.mean())


if __name__ == "__main__":
    print(pitches('[M:6/8] [K:D] d3 A2 F | "A" E2 A c2 e | "D" d6 |]'))
