"""The pictures of the documentation: they are there, small, and one command makes them."""

import importlib.util
import re
import shutil
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from agents import Results
from tests.helpers.fake_runs import write_fake_runs

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"
MADE = {"overview.svg", "curves.svg", "frontier.svg", "samples.svg", "summary.svg", "report.png"}
LARGEST = 100_000  # bytes
pytestmark = pytest.mark.filterwarnings("ignore:Glyph .* missing from font")  # of the words of fake runs


def pictures_of(page):
    """The path and the alternative text of each picture in a page."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", text)
    found += [(re.search(r'alt="([^"]*)"', tag)[1], re.search(r'src="([^"]+)"', tag)[1])
              for tag in re.findall(r"<img [^>]+>", text)]  # fmt: skip
    return [(page.parent / path, alt) for alt, path in found if not path.startswith("http")]


SHOWN = [picture for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")) for picture in pictures_of(page)]


@pytest.mark.parametrize(("path", "alt"), SHOWN, ids=lambda value: getattr(value, "name", ""))
def test_a_picture_that_a_page_shows_exists_is_small_and_is_described(path, alt):
    assert path.exists()
    assert path.stat().st_size < LARGEST
    assert len(alt.split()) > 3


def test_every_picture_that_is_made_is_shown():
    assert {path.resolve() for path, _ in SHOWN} >= {IMAGES / name for name in MADE}


@pytest.fixture(scope="module")
def pictures():
    """The program that makes the pictures."""
    spec = importlib.util.spec_from_file_location("make_pictures", ROOT / "docs" / "make_pictures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_one_command_makes_the_pictures_of_a_comparison(pictures, tmp_path, monkeypatch):
    results = Results.load(write_fake_runs(tmp_path / "runs", seeds=(0, 1)))
    seen = []
    monkeypatch.setattr(pictures, "compare", lambda agents, **settings: seen.append((agents, settings)) or results)
    monkeypatch.setattr(pictures, "photograph_report", lambda results, browser, path: path)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(sys, "argv", ["make_pictures.py", "--runs", "elsewhere", "--out", str(tmp_path / "images")])
    pictures.main()
    assert seen[0][0] == pictures.AGENTS
    assert seen[0][1]["out"] == Path("elsewhere")
    made = sorted((tmp_path / "images").iterdir())
    assert {path.name for path in made} == MADE - {"report.png"}
    for path in made:
        root = ET.parse(path).getroot()
        assert root.tag.endswith("svg")
        assert path.stat().st_size < LARGEST


def test_the_picture_of_the_summary_shows_the_numbers_of_the_page(pictures):
    table = pictures.read_table(ROOT / "docs" / "results.md")
    assert table["SeqGAN"] == (8.767, 6.215)
    assert table["MLE, stopped early"] == (9.615, 4.072)
    for axes, numbers in zip(pictures.summary(table).axes, zip(*table.values(), strict=True), strict=True):
        points = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"]
        assert points == list(numbers)


def test_the_same_comparison_gives_the_same_picture(pictures, tmp_path):
    results = Results.load(write_fake_runs(tmp_path / "runs", seeds=(0, 1), labels=["mle", "real"]))
    texts = [
        pictures.write_svg(pictures.samples(results), tmp_path / f"{i}" / "samples.svg").read_bytes()
        for i in (0, 1)
        if not (tmp_path / f"{i}").mkdir()
    ]
    assert texts[0] == texts[1]
    assert b"<text" not in texts[0]  # letters are shapes, whatever fonts a reader has


def test_the_report_is_photographed(pictures, tmp_path):
    browser = next(filter(None, map(shutil.which, pictures.BROWSERS)), None)
    if browser is None:
        pytest.skip("no Chromium here")
    results = Results.load(write_fake_runs(tmp_path / "runs", seeds=(0, 1), labels=["mle", "pg-bleu"]))
    path = pictures.photograph_report(results, browser, tmp_path / "report.png", size=(500, 300))
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 2000  # not an empty page
