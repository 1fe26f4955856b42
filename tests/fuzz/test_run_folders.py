"""Run folders that are damaged or hostile: every command says so in one line, and runs nothing that they name."""

import json
import os
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from agents.cli.main import main
from tests.helpers.fuzzing import cases
from text_gym.terminal import printable

pytestmark = pytest.mark.slow

TASK = "oracle(vocab_size=9, max_length=4, train_size=64, valid_size=9, test_size=9)"
MEASURED = "--samples 9 --references 9 --temperatures 1 --sweep-samples 9 --shown 1 --points 1 --curve-samples 9"
SIZES = "--device cpu --hidden 4 --embedding 4"
SHORT = "--rollouts 0 --batch-size 4"
DISCRIMINATOR = "--pretrain-d-steps 1 --d-samples 8 --discriminator.kind recurrent --discriminator.hidden 4"
TINY = ["--task", TASK, *MEASURED.split(), *SIZES.split()]
MLE = ["train", "mle", *TINY, "--schedule", "2", "0.01", "--no-early-stopping", "--out"]
NEXT = ["train", "reinforce", *TINY, *SHORT.split(), "--updates", "1", "--out", "next", "--start"]
SEQGAN = ["train", "seqgan", *TINY, *SHORT.split(), *DISCRIMINATOR.split(), "--rounds", "1", "--start"]
COMMANDS = {
    "sample": lambda folder: ["sample", folder, "--n", "2", "--seed", "1"],
    "evaluate": lambda folder: ["evaluate", folder],
    "report": lambda folder: ["report", folder, "--out", "page"],
    "start": lambda folder: [*NEXT, folder],
    "resume": lambda folder: [*MLE, folder],
}
OFTEN = [*["sample"] * 10, *["evaluate"] * 10, *["report"] * 2, *["start"] * 2, *["resume"] * 4]
LONGEST = 500  # characters of a message
SLOWEST = 30  # seconds of a case
MEMORY = 6 << 30
EVIL = "evil.py:anything"
CODE = "import pathlib\npathlib.Path({marker!r}).touch()\ndef anything(*_, **__):\n    pass\n"


def nested(depth):
    """JSON of lists in lists."""
    return "[" * depth + "]" * depth


NASTY = [
    *("null", "true", "false", "0", "-1", "1", "1.5", "-0.0", "1e308", "-1e308", "1e400", "NaN", "-Infinity", "[]"),
    *("9223372036854775808", "1" + "0" * 30, "1" + "0" * 400, "1" + "0" * 5000, '"inf"', '"nan"', '""', '"1"', "{}"),
    *('"\\u0000"', '"\\ud800"', '"\\u001b[31m"', '"../.."', '"/"', '"~"', '"=1+1"', '"$a$b{"', '"<script>"', '"\\n"'),
    *(json.dumps("x" * 100_000), json.dumps("("), json.dumps("mle(" * 300), json.dumps("mle(a=" + "-" * 5000 + "1)")),
    *(nested(40), nested(70), nested(900), nested(100_000), '{"a": {"a": {"a": 1}}}', '[1, "a", null]', '{"": 0}'),
    *map(json.dumps, (EVIL, f"mle(reward='{EVIL}')", [EVIL], {EVIL: 1.0}, "os:system", f"oracle(a='{EVIL}')")),
]  # fmt: skip
HOLE = "a hole for JSON"


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The folders of two small runs, the first of which can be resumed."""
    place = tmp_path_factory.mktemp("fuzz")
    assert main([*MLE, str(place / "mle")]) == 0
    assert main([*SEQGAN, str(place / "mle"), "--out", str(place / "seqgan")]) == 0
    for name in ("mle", "seqgan"):
        (place / name / "comparison.json").write_text('{"runs": ["."]}', encoding="utf-8")
    return place / "mle", place / "seqgan"


@pytest.fixture
def limited():
    """What asks for more memory than there is, or never ends, fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()

    def late(*_):
        raise BaseException(f"a case took more than {SLOWEST} seconds")

    before = signal.signal(signal.SIGALRM, late)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    signal.signal(signal.SIGALRM, before)


def test_damaged_run_folders(real, limited, tmp_path, monkeypatch, capsys):
    marker = tmp_path / "marker"
    (tmp_path / "evil.py").write_text(CODE.format(marker=str(marker)), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for number, random in cases("run folders"):
        for name in ("copy", "next", "page"):
            shutil.rmtree(name, ignore_errors=True)
        command = random.choice(OFTEN)
        shutil.copytree(real[0] if command == "resume" else random.choice(real), "copy")
        if command == "resume":
            os.unlink("copy/results.json")
        done = [mutate(tmp_path / "copy", random) for _ in range(random.choice((1, 1, 1, 2, 3)))]
        what = f"TEXT_GYM_FUZZ_CASE={number}: {command} after {done}"
        signal.alarm(SLOWEST)
        try:
            code = main(COMMANDS[command]("copy"))
        except BaseException as problem:
            raise AssertionError(what) from problem
        finally:
            signal.alarm(0)
        err = capsys.readouterr().err
        assert not marker.exists(), what
        if code != 0:
            assert code in (1, 2), what
            assert err.startswith("text-gym: "), what
            assert err.count("\n") == 1, (what, err)
            assert len(err) <= LONGEST, (what, err)
            assert printable(err) == err, what


def mutate(folder, random):
    """Damage one of the files of a folder; what was done to it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    if not files:
        return "nothing is left"
    path = random.choice(files)
    kinds = [damage_bytes, damage_structure]
    if path.suffix == ".json":
        kinds += [damage_json] * 6
    elif path.suffix == ".safetensors":
        kinds += [damage_tensors] * 4
    kind = random.choice(kinds)
    return f"{path.relative_to(folder)}: {kind.__name__}: {kind(path, random)}"


def damage_bytes(path, random):
    content = path.read_bytes()
    at = random.randrange(len(content) + 1)
    ways = {
        "cut": content[:at],
        "flipped": content[:at] + bytes(b ^ 1 << random.randrange(8) for b in content[at : at + 1]) + content[at + 1 :],
        "inserted": content[:at] + random.randbytes(random.choice((1, 4, 100))) + content[at:],
        "repeated": content + content[at:],
        "emptied": b"",
        "pickle": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x0ctouch marker\x85R.",
        "utf-16": content.decode("latin-1").encode("utf-16"),
        "latin-1": content + b"\xe9\xff",
        "zeros": bytes(len(content)),
        "long": b"[" * 200_000,
    }
    way = random.choice(sorted(ways))
    path.write_bytes(ways[way])
    return way


def damage_structure(path, random):
    way = random.choice(("deleted", "a folder", "a circle", "another file", "a dangling link", "without its folder"))
    if way == "without its folder":
        shutil.rmtree(path.parent)
        return way
    others = [other for other in path.parent.iterdir() if other.is_file()]
    content = random.choice(sorted(others)).read_bytes()
    path.unlink()
    if way == "a folder":
        path.mkdir()
    elif way == "a circle":
        path.symlink_to(path.name)
    elif way == "a dangling link":
        path.symlink_to("nowhere")
    elif way == "another file":
        path.write_bytes(content)
    return way


def damage_json(path, random):
    """Replace, remove or add a value somewhere in a file of JSON; of lines of JSON, in one line."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    whole = not path.name.startswith("progress")
    at = 0 if whole or not lines else random.randrange(len(lines))
    try:
        content = json.loads("\n".join(lines) if whole else lines[at])
    except (ValueError, IndexError, RecursionError):
        return "is no JSON any more"
    places = list(places_in(content))
    nasty = random.choice(NASTY)
    if not places or random.random() < 0.05:
        done, new = f"replaced by {nasty[:40]}", nasty
    else:
        parent, key = random.choice(places)
        way = random.choice(("replaced", "replaced", "replaced", "removed", "added"))
        if way == "removed":
            del parent[key]
        elif isinstance(parent, list) and way == "added":
            parent.append(HOLE)
        elif way == "added":
            parent[random.choice(("trust", "reward", "steps", "model", "", "seed", EVIL))] = HOLE
        else:
            parent[key] = HOLE
        done, new = f"{way} {key!r}: {nasty[:40]}", json.dumps(content).replace(json.dumps(HOLE), nasty)
    lines = [new] if whole else [*lines[:at], new, *lines[at + 1 :]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return done


def places_in(content):
    """Each place in lists and objects."""
    if isinstance(content, dict | list):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield content, key
            yield from places_in(value)


def damage_tensors(path, random):
    try:
        tensors = load_file(path)
    except Exception:
        return "is no checkpoint any more"
    name = random.choice(sorted(tensors))
    tensor = tensors[name]
    if not tensor.numel():
        return "is empty already"
    ways = {
        "removed": None,
        "nan": torch.full_like(tensor, float("nan"), dtype=torch.float32),
        "inf": torch.full_like(tensor, float("inf"), dtype=torch.float32),
        "large": torch.full_like(tensor, 1e38, dtype=torch.float32),
        "double": tensor.double(),
        "whole": tensor.long(),
        "complex": tensor.to(torch.complex64),
        "longer": torch.cat([tensor.flatten(), tensor.flatten()]),
        "empty": tensor.flatten()[:0],
        "scalar": tensor.flatten()[0].clone(),
    }
    way = random.choice(sorted(ways))
    if ways[way] is None:
        del tensors[name]
    else:
        tensors[name] = ways[way]
    if random.random() < 0.1:
        tensors["more.weight"] = torch.zeros(3)
    save_file(tensors, path)
    return f"{name} {way}"
