"""The glossary defines each metric in the words, the unit and the direction that reports show."""

import re
from pathlib import Path

import pytest

from agents.report.columns import COLUMNS, TOKENS_COUNTED

GLOSSARY = (Path(__file__).parents[3] / "docs" / "glossary.md").read_text(encoding="utf-8")
TERMS = """
    token, sequence, prefix, prompt, episode, policy, warm start, initial policy, run, run folder, model, comparison,
    control, constant reward, random reward, rollout, completion, credit, baseline, advantage, KL penalty,
    teacher forcing, exposure bias, temperature sweep, frontier, early stopping, source, oracle, held-out data, verdict,
    Holm correction, bootstrap interval, reward hacking, mode collapse
"""


def entries():
    """Title and text of every entry."""
    parts = re.split(r"^### (.+)$", GLOSSARY, flags=re.MULTILINE)
    return list(zip(parts[1::2], parts[2::2], strict=True))


def test_every_column_has_one_entry_in_the_glossary():
    rows = re.findall(r"^\| `(\w+)` \| .* \|$", GLOSSARY, re.MULTILINE)
    assert sorted(rows) == sorted(COLUMNS)


@pytest.mark.parametrize("column", COLUMNS.values(), ids=list(COLUMNS))
def test_the_glossary_describes_a_column_as_the_report_does(column):
    (text,) = [text for _, text in entries() if f"| `{column.key}` |" in text]
    first = " ".join(text.strip().partition("\n\n")[0].split())
    assert first == column.about
    assert f"| `{column.key}` | {column.unit} | {column.range} | {column.better} |" in text
    assert "- Misleading: " in text
    assert "- Exposed by: " in text
    assert re.fullmatch(r"[^.]+\.", column.about), "one sentence"


def test_the_glossary_defines_every_term_once():
    titles = [title.lower() for title, _ in entries()]
    assert len(titles) == len(set(titles))
    assert {" ".join(term.split()).lower() for term in TERMS.split(",")} <= set(titles)


def test_the_glossary_says_which_tokens_are_counted():
    assert TOKENS_COUNTED in " ".join(GLOSSARY.replace("`<unk>`", "<unk>").split())


def test_links_within_the_glossary_lead_to_a_heading():
    headings = re.findall(r"^#+ (.+)$", GLOSSARY, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = re.findall(r"\]\(#([^)]+)\)", GLOSSARY)
    assert links
    assert set(links) <= anchors
