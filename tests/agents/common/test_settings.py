import ast
import inspect
import re
import textwrap
from dataclasses import fields, is_dataclass
from typing import get_args, get_type_hints

import pytest

from agents.mle import MLESettings
from agents.networks.discriminators import DiscriminatorSettings
from agents.nlpo import NLPOSettings
from agents.ppo import PPOSettings
from agents.reinforce import ReinforceSettings
from agents.scheduled_sampling import ScheduledSamplingSettings
from agents.seqgan import SeqGANSettings
from text_gym.errors import OptionError

SETTINGS = (MLESettings, ScheduledSamplingSettings, ReinforceSettings, SeqGANSettings, NLPOSettings)


def field_docstrings(settings):
    """The docstring under each field of a dataclass and of its bases and groups, "" for none."""
    for cls in settings.__mro__:
        if is_dataclass(cls):
            body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body
            for statement, following in zip(body, [*body[1:], None], strict=True):
                if isinstance(statement, ast.AnnAssign):
                    text = getattr(getattr(following, "value", None), "value", "")
                    yield f"{cls.__name__}.{statement.target.id}", text if isinstance(text, str) else ""
    for field in fields(settings):
        if is_dataclass(group := getattr(settings(), field.name)):
            yield from field_docstrings(type(group))


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_help_of_a_setting_is_one_line_or_a_list_of_choices(settings):
    """A line break in the middle of a sentence would also be one in --help."""
    documented = dict(field_docstrings(settings))
    assert set(documented) >= {f"{settings.__name__}.{name}" for name in settings.__annotations__}
    for name, text in documented.items():
        first, *others = text.splitlines()
        assert first.endswith(":" if others else ("."))
        assert all(line.strip().startswith("- ") for line in others), name


@pytest.mark.parametrize("settings", [*SETTINGS, DiscriminatorSettings])
def test_a_list_of_choices_has_all_that_the_type_allows(settings):
    """The types are what --help shows as {a,b}."""
    hints = get_type_hints(settings)
    for name, text in field_docstrings(settings):
        listed = re.findall(r"^ *- (\w+):", text, re.MULTILINE)
        if listed and name.startswith(settings.__name__):
            assert tuple(listed) == get_args(hints[name.rpartition(".")[2]])


@pytest.mark.parametrize(
    ("settings", "name"),
    [(MLESettings, "policy"), (MLESettings, "dtype"), (DiscriminatorSettings, "kind"), (PPOSettings, "critic")],
)
def test_choices_are_in_the_type(settings, name):
    choices = get_args(get_type_hints(settings)[name])
    assert getattr(settings(), name) in choices
    for choice in choices:
        with pytest.raises(OptionError, match=choice):
            settings(**{name: "another"})
