"""The commands of text-gym, except train and compare."""

import re
import urllib.error
import urllib.request

from agents.experiments.run import load_model, prepare_run
from agents.experiments.settings import RunSpec
from agents.web.server import LocalServer
from tests.helpers.commands import TINY, run
from tests.helpers.programs import Program


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
    code, out, err = run(capsys, "score", str(path), "--reward", "validity")
    assert (code, out.splitlines()) == (1, ["1\tthe dogs run", "1\tmean of 1 by validity"])
    assert err.startswith(f"text-gym: {path}, line 2: 'big' is not in this vocabulary")
    for name, content, exit_code in [
        ("latin.txt", b"caf\xe9\n", 2), ("none.txt", b"", 2),
        ("eos.txt", b"the <eos> dogs\n", 1), ("long.txt", b"the " * 22, 1),
    ]:  # fmt: skip
        code, out, err = run(capsys, "score", str(write(name, content)))
        assert (code, out, err.count("\n")) == (exit_code, "", 1), name
    marked = write("marked.txt", b"\xef\xbb\xbfthe dogs run\r\n")
    assert run(capsys, "score", str(marked), "--reward", "validity")[1].startswith("1\tthe dogs run\n")
    code, out, _ = run(capsys, "score", str(write("answers.txt", "1 2\n")), "--task", "answers")
    assert out.endswith("mean of 1 by bleu\n")


def test_score_goes_on_after_a_bad_line(capsys, write, answers):
    texts = answers.batch("test").texts[:3]
    path = write("answers.txt", f"{texts[0]}\nno such words\n{texts[2]}\n")
    code, out, err = run(capsys, "score", str(path), "--task", "answers", "--reward", "exact_match")
    assert code == 1
    assert out.splitlines() == [f"1\t{texts[0]}", f"1\t{texts[2]}", "1\tmean of 2 by exact_match"]
    assert err.count("\n") == 1
    assert err.startswith(f"text-gym: {path}, line 2: 'no' is not in this vocabulary")
    long = write("long.txt", "1\n" * (len(answers.test) + 1))
    assert run(capsys, "score", str(long), "--task", "answers")[0] == 2


def test_audit(capsys):
    code, out, _ = run(capsys, "audit", "--n", "200", "--reward", "validity", "--reward", "constant(value=0.5)")
    rows = {line.split()[1]: line.split()[3::2] for line in out.splitlines() if line.startswith("│")}
    assert code == 0
    assert rows["constant(value=0.5)"] == ["0.500"] * 3
    assert rows["validity"][0] == "1.000"
    assert float(rows["validity"][1]) < 0.1
    assert rows["validity"][2] == "0.000"


def test_sample_a_run(trained, capsys):
    code, out, _ = run(capsys, "sample", str(trained), "--n", "3", "--seed", "1")
    assert code == 0
    assert out.splitlines() == load_model(trained).sample(3, seed=1).texts
    sharp = run(capsys, "sample", str(trained), "--n", "30", "--seed", "1", "--temperature", "0.01")[1]
    assert len(set(sharp.splitlines())) < 5
    assert (
        run(capsys, "sample", str(trained), "--n", "30", "--top-k", "1")[1].splitlines()[1:]
        == (run(capsys, "sample", str(trained), "--n", "30", "--top-p", "0.01")[1].splitlines()[1:])
    )
    for wrong in (["--n", "0"], ["--seed", "-1"], ["--temperature", "0"], ["--top-k", "-1"], ["--prompt", "1 2"]):
        code, out, err = run(capsys, "sample", str(trained), *wrong)
        assert (code, out, err.count("\n")) == (2, "", 1), wrong


def test_report_of_runs(trained, capsys, here):
    assert run(capsys, "train", "uniform", *TINY, "--out", "other")[0] == 0
    code, out, err = run(capsys, "report", str(trained), "other", "--out", "page")
    assert (code, err.count("\n")) == (2, 1)
    assert "these runs differ in metrics" in err
    assert run(capsys, "train", "uniform", *TINY, "--also", "length", "--out", "uniform")[0] == 0
    code, out, _ = run(capsys, "report", str(trained), "uniform", "--out", "page")
    assert (code, out) == (0, "page/report.html\n")
    page = (here / "page" / "report.html").read_text(encoding="utf-8")
    assert "uniform" in page
    assert "mle" in page
    for wrong in ([], ["absent"], ["mine.py"], ["uniform", "--out", "mine.py"]):
        code, out, err = run(capsys, "report", *wrong)
        assert (code, out, err.count("\n")) == (2, "", 1), wrong


def test_agents_are_listed_with_their_hyper_parameters(capsys, here):
    code, out, _ = run(capsys, "agents")
    assert code == 0
    assert all(name in out for name in ("mle", "pg-bleu", "seqgan", "uniform", "real"))
    code, out, _ = run(capsys, "agents", "seqgan")
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()[1:] if line.strip()}
    assert {"rounds", "rollouts", "hidden", "kl.weight"} <= set(rows)
    assert rows["discriminator.reward"] == ["probability", "log_ratio"]  # the default and the preset demo
    assert out.splitlines()[0].split() == ["hyperparameter", "default", "paper", "fast", "demo", "finetune"]
    for wrong in ("segan", "uniform", "mine.py:Repeats", "mine.py:Nobody"):
        code, out, err = run(capsys, "agents", wrong)
        assert (code, out, err.count("\n")) == (2, "", 1), wrong


def test_real_sequences_are_not_written_by_an_agent(capsys):
    for words in (["--temperature", "0.5"], ["--top-k", "3"], ["--prompt", "a"]):
        code, out, err = run(capsys, "sample", *words)
        assert (code, out) == (2, "")
        assert "name the folder of a run" in err


def test_play_offers_the_rewards_that_are_named(tmp_path, capsys, monkeypatch):
    served = []

    def wait(server):
        served.append(server)
        text = urllib.request.urlopen(server.address, timeout=30).read().decode()
        assert "<option>bleu(n=2)</option><option>length</option><option>bleu</option>" in text

    monkeypatch.setattr(LocalServer, "wait", wait)
    prepare_run(tmp_path, RunSpec("uniform", "uniform", 0, "grammar", kind="control"))
    named = ["--reward", "bleu(n=2)", "--reward", "length"]
    code, out, err = run(capsys, "play", str(tmp_path), "--no-open", "--port", "0", *named)
    assert (code, err) == (0, "")
    assert out == f"{tmp_path} is shown at {served[0].address} (Ctrl-C stops the page)\n"
    code, out, err = run(capsys, "play", str(tmp_path / "nothing"), "--no-open")
    assert (code, out, err.count("\n"), len(served)) == (2, "", 1, 1)
    assert "nothing" in err


def test_watch_serves_its_page_until_ctrl_c(tmp_path):
    words = ["watch", "later", "--no-open", "--port", "0"]
    program = Program(
        "import sys; from agents.cli.main import main; sys.exit(main(sys.argv[1:]))", *words, cwd=tmp_path
    )
    program.until(lambda: "\n" in program.printed())
    address = re.match(r"later is shown at (http://127\.0\.0\.1:\d+/) \(Ctrl-C", program.printed())[1]
    assert "There is no such folder yet" in urllib.request.urlopen(address, timeout=30).read().decode()
    program.interrupt()
    assert (program.wait(30), program.errors) == (0, "")
    assert list(tmp_path.iterdir()) == []
