"""The notebook: its cells run in order, and show what they promise."""

import json
import re
from pathlib import Path

import pytest

from tests.helpers.comparisons import OPTIONS, TASK
from tests.helpers.notebooks import run_notebook

NOTEBOOK = Path(__file__).parents[1] / "examples" / "quickstart.ipynb"
TINY = {
    "task": TASK,
    "seeds": 1,
    "options": {"mle": {**OPTIONS["mle"], "early_stopping": True}, "reinforce": OPTIONS["pg-bleu"]},
    "metrics": {"samples": 30, "references": 20, "temperatures": (1.0,), "sweep_samples": 20, "curve_samples": 20},
    "out": "runs/tiny",
}


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """What the cells of the notebook show."""
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(tmp_path_factory.mktemp("notebook"))
        patched.delenv("DISPLAY", raising=False)
        yield run_notebook(NOTEBOOK, **TINY)


def test_it_shows_the_plots(shown):
    for cell in ("curves", "frontier"):
        assert shown[cell]._repr_png_().startswith(b"\x89PNG"), cell
        assert all(axes.has_data() and axes.get_ylabel() for axes in shown[cell].axes), cell
        assert shown[cell].axes


def test_it_shows_a_row_for_each_model(shown):
    table = shown["dataframe"]
    assert list(table.index) == ["mle", "reinforce", "constant", "random", "uniform", "real"]
    assert list(table) == ["reward", "nll_test", "entropy", "bleu4"]
    assert table.notna().all(axis=None)
    assert "<table" in shown["compare"]._repr_html_()


def test_it_is_stored_without_outputs():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)


def test_its_links_lead_somewhere():
    text = NOTEBOOK.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert links
    assert all((NOTEBOOK.parent / link).exists() for link in links)
