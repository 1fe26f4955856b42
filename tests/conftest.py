"""What several test files need."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: nothing is to be downloaded
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start: several share the cores

import pytest
import torch

import text_gym

pytest.register_assert_rewrite("tests.helpers")
torch.set_num_threads(1)  # several test processes share the cores


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test reads or leaves anything in the user's cache."""
    monkeypatch.setenv("TEXT_GYM_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def data():
    """The folder of real data, where there is one."""
    folder = os.environ.get("TEXT_GYM_DATA")
    if not folder:
        pytest.skip("TEXT_GYM_DATA is not set")
    return Path(folder)


@pytest.fixture(scope="session")
def grammar():
    return text_gym.make_task("grammar")


@pytest.fixture(scope="session")
def answers():
    return text_gym.make_task("answers")


@pytest.fixture
def write(tmp_path):
    """Write a file, and get its path."""

    def writer(name, text, encoding="utf-8"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
        return path

    return writer
