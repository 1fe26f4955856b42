"""Registries: registration, lookup, descriptions and lazy imports."""

import subprocess
import sys

import pytest

from text_gym.errors import OptionError, UnknownNameError
from text_gym.registry import Registry, load_attribute, parse_call
from text_gym.rewards.scorer import REWARDS


def one():
    """The first line.

    And another.
    """
    return 1


@pytest.fixture
def numbers():
    return Registry("number", {"one": one, "two": "tests.helpers.nowhere:two"}, about={"two": "Not imported."})


def test_names_stand_for_objects_or_for_where_they_are(numbers, tmp_path):
    assert numbers.find("one") is one
    with pytest.raises(UnknownNameError, match=r"cannot import 'tests\.helpers\.nowhere'"):
        numbers.find("two")
    assert Registry("number", {"three": "tests.text_gym.test_registry:one"}).find("three")() == 1
    assert numbers.find("tests.text_gym.test_registry:one", trust=True)() == 1
    path = tmp_path / "mine.py"
    path.write_text("def four():\n    return 4\n")
    four = load_attribute(f"{path}:four", trust=True)
    assert numbers.resolve(f"{path}:four(a=[1], b=None)", trust=True)[1:] == (four, {"a": [1], "b": None})
    assert numbers.resolve("one(n=2)") == ("one", one, {"n": 2})
    with pytest.raises(UnknownNameError, match=r"unknown number 'on'\. Did you mean 'one'\? Known: one, two\."):
        numbers.find("on")
    with pytest.raises(UnknownNameError, match=r"mine\.py' has no 'for'\. Did you mean 'four'"):
        numbers.find(f"{path}:for", trust=True)


def test_code_is_only_imported_with_trust(numbers, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'marker')!r}).touch()\ndef four():\n    return 4\n")
    for name in (f"{path}:four", f"{path}:four(n=1)", "os:system"):
        with pytest.raises(OptionError, match="names code, which is only run with trust"):
            numbers.resolve(name)
    assert not (tmp_path / "marker").exists()
    assert Registry("number", {"three": f"{path}:four"}).find("three")() == 4


def test_what_is_registered_can_be_called_and_has_a_name_of_its_own(numbers):
    numbers.register("five", lambda: 5)
    assert numbers.find("five")() == 5
    for name, thing, words in [
        ("one", one, "number 'one' is already registered; choose another name, or pass replace=True"),
        ("six", 6, "6 cannot be registered as a number: it cannot be called"),
        ("my number", one, "the name of a number must be an identifier, not 'my number'"),
    ]:
        with pytest.raises(OptionError, match=words):
            numbers.register(name, thing)
    assert list(numbers.entries) == ["one", "two", "five"]
    numbers.register("two", one, replace=True)
    assert numbers.describe() == {"one": "The first line.", "two": "The first line.", "five": ""}


def test_names_are_described_in_their_order_and_without_an_import_where_that_is_given(numbers):
    assert list(numbers.describe().items()) == [("one", "The first line."), ("two", "Not imported.")]


def test_every_built_in_reward_has_the_name_that_it_is_registered_by():
    rewards = {name: entry for name, entry in REWARDS.entries.items() if isinstance(entry, str)}
    assert len(rewards) == 14
    assert {name: REWARDS.find(name).name for name in rewards} == {name: name for name in rewards}


def test_listing_names_imports_neither_torch_nor_optional_libraries():
    code = (
        "import sys\n"
        "from text_gym.rewards import registered_rewards\n"
        "from text_gym.tasks import registered_tasks\n"
        "assert all(registered_rewards().values()) and all(registered_tasks().values())\n"
        "heavy = ('torch', 'agents', 'transformers', 'sacrebleu', 'nltk', 'rouge_score', 'trl')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_calls_are_literals_only():
    assert parse_call("a(b=[1, 2], c={'d': None}, e=-1.5)") == ("a", {"b": [1, 2], "c": {"d": None}, "e": -1.5})
    for spec in ("a(b", "a(b=c)", "a(b=1)(c=2)", "a(**{'b': 1})", "a(1)", "a(b=open('x'))"):
        with pytest.raises(OptionError, match="cannot read"):
            parse_call(spec)
