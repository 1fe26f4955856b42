"""A small finished run, and a working directory with the user's own agents."""

import pytest

from agents.cli.main import main
from tests.helpers.commands import MLE, OWN, TINY


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Folder of a small finished run; no test changes it."""
    out = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", "mle", *TINY, *MLE, "--out", str(out), "--also", "length"]) == 0
    return out


@pytest.fixture
def here(tmp_path, monkeypatch, write):
    """Working directory with the agents and rewards of mine.py."""
    monkeypatch.chdir(tmp_path)
    write("mine.py", OWN)
    return tmp_path
