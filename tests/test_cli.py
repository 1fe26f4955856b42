"""The text-gym command and the examples, as a person runs them."""

import subprocess
import sys
from pathlib import Path

import pytest

from agents.audit import audit_rewards
from agents.cli import main

ROOT = Path(__file__).parent.parent


def run(capsys, *arguments):
    """Exit code, standard output, standard error."""
    code = main(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


def test_lists(capsys):
    code, out, _ = run(capsys, "tasks")
    assert code == 0
    assert all(name in out for name in ("grammar", "oracle", "answers"))
    code, out, _ = run(capsys, "rewards")
    assert all(name in out for name in ("bleu", "rouge_l", "constant"))


def test_sample(capsys, grammar, answers):
    code, out, _ = run(capsys, "sample", "--n", "3", "--seed", "4")
    lines = out.splitlines()
    assert (code, len(lines)) == (0, 3)
    assert grammar.is_valid(grammar.encode(lines[0]))[0]
    assert out == run(capsys, "sample", "--n", "3", "--seed", "4")[1]
    first = run(capsys, "sample", "--task", "answers", "--n", "1")[1]
    assert first == "{} -> {}\n".format(
        *(column[0] for column in (answers.batch("test").prompts, answers.batch("test").texts))
    )
    assert run(capsys, "--version")[1].startswith("text_gym 0.")


def test_score(capsys, write):
    path = write("lines.txt", "the dogs run\nmary sings and the big\n")
    code, out, err = run(
        capsys, "score", str(write("good.txt", "the dogs run\nthe dogs runs\n")), "--reward", "validity"
    )
    assert (code, out.splitlines()) == (0, ["1\tthe dogs run", "0\tthe dogs runs", "0.5\tmean of 2 by validity"])
    code, out, err = run(capsys, "score", str(path))
    assert (code, out) == (2, "")
    assert err.startswith(f"text-gym: {path}, line 2: 'big' is not in this vocabulary")
    for name, content in [
        ("latin.txt", b"caf\xe9\n"), ("eos.txt", b"the <eos> dogs\n"), ("long.txt", b"the " * 22), ("none.txt", b""),
    ]:  # fmt: skip
        code, out, err = run(capsys, "score", str(write(name, content)))
        assert (code, out, err.count("\n")) == (2, "", 1), name
    marked = write("marked.txt", b"\xef\xbb\xbfthe dogs run\r\n")
    assert run(capsys, "score", str(marked), "--reward", "validity")[1].startswith("1\tthe dogs run\n")
    code, out, _ = run(capsys, "score", str(write("answers.txt", "1 2\n")), "--task", "answers")
    assert out.endswith("mean of 1 by bleu\n")


def test_audit(capsys):
    code, out, _ = run(capsys, "audit", "--n", "200", "--reward", "validity", "--reward", "constant(value=0.5)")
    rows = {line.split()[1]: line.split()[3::2] for line in out.splitlines() if line.startswith("│")}
    assert code == 0
    assert rows["constant(value=0.5)"] == ["0.500"] * 3
    assert rows["validity"][0] == "1.000"
    assert float(rows["validity"][1]) < 0.1
    assert rows["validity"][2] == "0.000"


def test_the_audit_keeps_words_or_replaces_them(grammar, answers):
    means = audit_rewards(grammar, ["bleu(n=1)", "length"], n=300)
    assert means["length"][0] == means["length"][1] == means["length"][2]
    assert means["bleu(n=1)"][0] == pytest.approx(means["bleu(n=1)"][1], abs=1e-9)
    assert audit_rewards(grammar, ["tests.rewards_for_tests:words_only"], n=1000) == {
        "tests.rewards_for_tests:words_only": (1.0, 1.0, 1.0)
    }
    assert audit_rewards(answers, n=50)["exact_match"][0] == 1.0


@pytest.mark.parametrize(
    "arguments",
    [
        ("sample", "--task", "gramar"), ("sample", "--split", "tset"), ("score", "absent.txt"),
        ("audit", "--reward", "blue"), ("audit", "--reward", "exact_match"), ("audit", "--n", "0"),
        ("sample", "--n", "-3"), ("sample", "--seed", "-1"), ("sample", "--task", "grammar(seed=-1)"),
        ("audit", "--reward", "bleu(n=True)"), ("audit", "--reward", "constant(value='x')"), ("sample", "--task", ":"),
        ("audit", "--reward", "tests.rewards_for_tests:fails"), ("sample", "--task", "grammar(test_size=0)"),
        ("audit", "--task", "grammar(test_size=0)"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(capsys, arguments):
    code, out, err = run(capsys, *arguments)
    assert (code, out, err.count("\n"), err.startswith("text-gym: ")) == (2, "", 1, True)
    with pytest.raises(Exception, match=r"."):
        main([*arguments, "--debug"])


def test_the_installed_command():
    command = Path(sys.executable).with_name("text-gym")
    done = subprocess.run([command, "sample", "--n", "1"], capture_output=True, text=True, check=True)
    assert len(done.stdout.split()) >= 3
    failed = subprocess.run([command, "sampel"], capture_output=True, text=True, check=False)
    assert failed.returncode == 2


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("random_agent.py", ["Random tokens:", "reward", "bleu", "->"]),
        ("custom_reward.py", ["the tiger travels", "alliteration"]),
        ("own_corpus.py", ["Task('rhymes'", "is worth 1.00"]),
        ("vector.py", ["steps a second", "mean BLEU-2"]),
    ],
)
def test_examples(name, words):
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / name], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert all(word in done.stdout for word in words), done.stdout


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("train_reinforce.py --updates 2 --train-size 300", ["MLE: BLEU", "PG-BLEU: BLEU"]),
        ("train_seqgan.py --rounds 2 --vocab-size 50 --train-size 200", ["SeqGAN, in nats", "kl_data_model", "0.5"]),
        ("custom_agent.py --steps 3", ["before: reward", "after: reward"]),
        ("conditional.py --epochs 2 --updates 2 --size 60", ["supervised:", "after REINFORCE:", "your own:"]),
    ],
)
def test_training_examples(tmp_path, command, words):
    name, *options = command.split()
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / name, *options],
        capture_output=True, text=True, check=False, timeout=300, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    places = [done.stdout.index(word) for word in words]
    assert places == sorted(places)


def test_an_agent_of_ones_own_takes_less_than_40_lines():
    program = (ROOT / "examples" / "custom_agent.py").read_text(encoding="utf-8")
    own = program[program.index("class BestOfMany") : program.index("def main")]
    assert len(own.strip().splitlines()) < 40


def test_an_example_on_ones_own_file(write):
    path = write("mine.txt", "uno dos\ndos tres\n")
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "own_corpus.py", path], capture_output=True, text=True, check=True
    )
    assert "Task('mine'" in done.stdout
    assert "is worth 1.00" in done.stdout
