"""Use your own corpus: a text file with one sequence per line. Without an argument, a tiny one is created."""

import sys
import tempfile
from pathlib import Path

import gymnasium as gym

import text_gym

RHYMES = """\
the cat sat on the mat
the rat sat on the hat
a cat saw a rat
a rat saw the mat
"""


def main(path: Path) -> None:
    """Load a corpus as a task, and generate its first sentence, starting from the first word."""
    task = text_gym.make_task(path, valid=0.0, test=0.0)  # four lines are too few for held-out splits
    print(task, "-", task.report)
    env = gym.make("TextGen-v0", task=task, reward="bleu(n=2)")
    sentence = task.train[0].references[0]
    env.reset(options={"prefix": list(sentence[:1])} | ({"prompt_index": 0} if task.conditional else {}))
    for token in [*sentence[1:], task.vocab.eos]:
        _, reward, _, _, info = env.step(token)
    print(f"{info['text']!r}: reward {reward:.2f}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            corpus = Path(folder) / "rhymes.txt"
            corpus.write_text(RHYMES, encoding="utf-8")
            main(corpus)
