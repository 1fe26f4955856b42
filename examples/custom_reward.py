"""Define a reward as a function of completions, and use it in a weighted sum with a built-in reward."""

from itertools import pairwise

import gymnasium as gym

import text_gym  # noqa: F401 - registers TextGen-v0


def alliteration(completions: list[str], **columns: object) -> list[float]:
    """Compute the share of adjacent words that begin with the same letter."""
    scores = []
    for text in completions:
        words = text.split()
        pairs = list(pairwise(words))
        scores.append(sum(a[0] == b[0] for a, b in pairs) / max(len(pairs), 1))
    return scores


if __name__ == "__main__":
    env = gym.make("TextGen-v0", reward={"bleu(n=2)": 1.0, alliteration: 0.5})
    for sentence in ("the tiger travels", "the big bears behind bridges"):
        env.reset()
        vocab = env.unwrapped.task.vocab
        words = [word for word in sentence.split() if word in vocab.ids]
        for token in [*vocab.encode_tokens(words), vocab.eos]:
            _, reward, _, _, info = env.step(token)
        print(f"{info['text']!r}: reward {reward:.3f} from {info['reward_terms']}")
