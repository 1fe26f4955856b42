"""Create batches from texts."""

from text_gym.sequences import Batch, make_batch


def batch_of(task, *texts, examples=None):
    rows = [[*task.encode(text), *[task.vocab.eos] * (task.vocab.eos is not None)] for text in texts]
    width = max(map(len, rows))
    batch = make_batch([row + [task.vocab.pad] * (width - len(row)) for row in rows], None, task.vocab)
    return Batch(batch.tokens, batch.lengths, task.vocab, examples)
