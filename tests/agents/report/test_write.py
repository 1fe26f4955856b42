"""The report says what the run files say, everywhere the same, and its page works in a browser."""

import csv
import io
import itertools
import json
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from agents.report import charts, tables
from agents.report.columns import column_of
from agents.report.results import Results
from agents.report.run_files import Runs
from agents.report.sweeps import best_under
from agents.report.write import as_csv, terminal_table, write_report
from tests.helpers.browser import BROWSER, OUTSIDE, PALE, Browser
from tests.helpers.fake_runs import WORDS, write_fake_runs

GOLDEN = Path(__file__).parent / "golden" / "report.md"
VOID = {"meta", "link", "input", "br", "hr", "img"}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return Results.load(write_fake_runs(tmp_path_factory.mktemp("runs")))


@pytest.fixture(scope="module")
def page(results, tmp_path_factory):
    return write_report(results, tmp_path_factory.mktemp("report") / "new")


class Page(HTMLParser):
    """Checks that tags are balanced, and keeps elements and text."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.words, self.in_cell = [], [], {}, None
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, text):
        if self.open:
            self.words.setdefault(self.open[-1], []).append(text)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def test_the_small_comparisons_report_is_as_it_was(page):
    """For an intended change, run `python -m tests.agents.report.test_write` and read the difference."""
    assert (page.parent / "report.md").read_text(encoding="utf-8") == GOLDEN.read_text(encoding="utf-8")


def test_a_number_is_the_same_in_the_run_files_the_csv_and_the_page(page, results):
    with (page.parent / "report.csv").open(encoding="utf-8", newline="") as file:
        rows = {(row["label"], row["figure"]): row for row in csv.DictReader(file)}
    assert len(rows) > 80
    for run in results.runs.values():
        done = json.loads((run.folder / "results.json").read_text()) if run.finished else {"figures": {}}
        for key, value in done["figures"].items():
            assert float(rows[run.label, key][f"seed {run.seed}"]) == float(value)
    shown = {
        (cell["data-label"], cell["data-key"]): cell["data-value"]
        for cell in Page(page.read_text(encoding="utf-8")).all("td")
        if "data-key" in cell and "data-value" in cell
    }
    assert shown == {key: row["mean"] for key, row in rows.items()}
    for (label, key), row in rows.items():
        values = [float(row[f"seed {seed}"]) for seed in results.seeds if row[f"seed {seed}"]]
        assert len(values) == int(row["n"]) == len(results.values(label, key))
        assert float(row["mean"]) == pytest.approx(sum(values) / len(values), rel=1e-12)
        if row["low"]:
            assert min(values) - 1e-9 <= float(row["low"]) <= float(row["mean"]) <= float(row["high"])


def test_no_text_of_the_csv_is_a_formula(results):
    labels = ["=1+1", "+cmd|' /C calc'!A0", "-2", "@sum", "\t=1", "\r=1", "mle"]
    run = next(run for run in results.runs.values() if run.finished)
    figures = {"nll_test": -1.5, "also:=x": 2.0, "=cmd()": 3.0}
    odd = [run._replace(spec=run.spec | {"label": label, "baseline": None}, figures=figures) for label in labels]
    rows = list(csv.reader(io.StringIO(as_csv(tables.context(Runs(odd))))))[1:]
    assert {row[0] for row in rows} == {f"'{label}" for label in labels[:-2]} | {r"\r=1", "mle"}
    assert {row[2] for row in rows} == {"nll_test", "also:=x", "'=cmd()"}
    assert {float(row[4]) for row in rows} == {-1.5, 2.0, 3.0}


def test_the_page_writes_its_numbers_as_their_columns_do(page):
    cells = re.findall(r'data-key="([^"]+)" data-value="([^"]+)"><span[^>]*>([^<]*)<', page.read_text(encoding="utf-8"))
    assert len(cells) > 80
    for key, value, text in cells:
        assert text == column_of(key).show(float(value))


def test_what_is_not_significant_looks_so(results, page):
    items = [item for group in tables.context(results)["verdicts"] for item in group["items"]]
    weak = [item for item in items if "not significant" in item["text"] and item["outcome"] in ("gain", "loss")]
    assert weak == [item for item in items if item["weak"]]
    assert 0 < len(weak) < len(items)
    text = page.read_text(encoding="utf-8")
    assert text.count("not significant after the correction</strong>") == text.count(' weak">') == len(weak)


def test_the_text_of_a_cell_is_its_value(results):
    table = tables.main_table(results)
    for row in itertools.chain.from_iterable(group["rows"] for group in table["groups"]):
        for column, cell in zip(table["columns"], row["cells"], strict=True):
            shown = float(cell["text"].replace(" %", "").replace(",", "") or "nan")
            mean = cell["summary"].mean * (100 if "%" in cell["text"] else 1)
            assert shown == mean or shown == pytest.approx(mean, abs=0.5) or (math.isnan(shown) and math.isnan(mean))
            assert bool(cell["text"]) == bool(cell["values"]), (row["label"], column["key"])


def test_the_best_is_marked_among_agents_and_controls_and_never_a_reference(results):
    table = tables.main_table(results)
    places = {column["key"]: i for i, column in enumerate(table["columns"])}
    marked = {
        key: [row["label"] for group in table["groups"] for row in group["rows"] if row["cells"][i]["best"]]
        for key, i in places.items()
    }
    assert marked["nll_oracle"] == ["pg-bleu"]  # the real sequences have less
    assert marked["nll_test"] == ["mle"]
    assert marked["bleu4"] == ["pg-bleu"]
    assert marked["entropy"] == marked["seconds"] == []


def test_noise_is_never_the_best(tmp_path):
    folder = write_fake_runs(tmp_path / "runs", seeds=(0, 1))
    for path in (folder / "uniform").rglob("results.json"):
        done = json.loads(path.read_text(encoding="utf-8"))
        done["figures"]["self_bleu4"] = 0.0  # no model repeats itself less
        done["sweep"] = [row | {"nll_oracle": 0.0, "nll_test": 0.0} for row in done["sweep"]]
        path.write_text(json.dumps(done), encoding="utf-8")
    found = tables.context(Results.load(folder))
    place = [column["key"] for column in found["table"]["columns"]].index("self_bleu4")
    rows = itertools.chain.from_iterable(group["rows"] for group in found["table"]["groups"])
    assert [row["label"] for row in rows if row["cells"][place]["best"]] == ["mle"]
    best = {row["label"]: any(cell["best"] for cell in row["cells"]) for row in found["best"]["rows"]}
    assert not best["uniform"]
    assert any(best.values())


def test_units_and_unknown_words_are_told(page):
    text = page.read_text(encoding="utf-8")
    assert "unknown words (&lt;unk&gt;): 0 % of train, 1.2 % of valid, 1.3 % of test" in text[: text.index("</header>")]
    definitions = text[text.index("Definitions of the metrics") :]
    for words in ("Metrics in nats per token count EOS and &lt;unk&gt; as tokens.", "Nats per sequence, 0 to 0.693;"):
        assert words in definitions


def test_the_page_needs_nothing_else(page):
    text = page.read_text(encoding="utf-8")
    for tag, attributes in Page(text).elements:
        assert tag not in ("script", "img", "iframe", "object", "embed") or not attributes, (tag, attributes)
        for name in ("src", "href", "xlink:href", "action", "data", "poster"):
            assert attributes.get(name, "#").startswith(("#", "data:")), attributes
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_ids_are_unique_and_references_lead_to_them(page):
    text = page.read_text(encoding="utf-8")
    elements = Page(text).elements
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = re.findall(r"url\(#([^)]+)\)", text) + [
        attributes["xlink:href"][1:] for _, attributes in elements if "xlink:href" in attributes
    ]
    assert set(used) <= set(ids)


def test_what_models_write_stays_text(page):
    text = page.read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "&amp;amp;" in text
    assert "<b>bold</b>" not in text
    assert "<nan>" not in text
    assert len(Page(text).all("script")) == 1
    assert set(Page(text).words["span"]) >= set(WORDS)


def test_credits_are_differences_of_values(results, page):
    sample = results.of("mle")[0].samples[0]
    credits = [f"{after - before:+.3f}" for before, after in itertools.pairwise(sample["values"])]
    spans = [span for span in Page(page.read_text(encoding="utf-8")).all("span") if "title" in span]
    shown = [span["title"] for span in spans[: len(credits)]]
    assert shown == [f"credit {c}, value {v:.3f}" for c, v in zip(credits, sample["values"][1:], strict=True)]
    classes = ["minus" if credit.startswith("-") else "plus" for credit in credits]
    assert [span["class"] for span in spans[: len(credits)]] == [f"token {name}" for name in classes]
    largest = max(abs(float(span["style"].partition(":")[2])) for span in spans)
    assert largest == 1


def test_failed_and_unfinished_runs_are_told(page):
    text = page.read_text(encoding="utf-8")
    assert "ss, seed 2: failed: TrainingError: the loss is &lt;nan&gt; at step 3" in text
    assert "random, seed 2: not finished" in text
    assert text.count("2 of 3</td>") == 2


def test_best_under_takes_the_best_temperature_of_each_seed(results):
    """At 6.3, mle's own NLL-test is 6.1 and that of the next colder temperature 6.23."""
    rows = {(row.label, row.limit): row for row in best_under(results, [5.0, 6.3, 100.0])}
    per_seed = [
        min(row["nll_oracle"] for row in run.sweep if row["nll_test"] <= 6.3) for run in results.of("mle") if run.sweep
    ]
    assert rows["mle", 6.3].mean == pytest.approx(sum(per_seed) / 3)
    assert rows["mle", 6.3][3:] == (3, 3)
    assert math.isnan(rows["mle", 5.0].mean)
    assert rows["mle", 5.0].n == 0
    assert rows["ss", 100.0].seeds == 2
    assert rows["uniform", 100.0].mean == math.inf
    assert not any(label == "real" for label, _ in rows)
    values = [row["nll_test"] for run in results.runs.values() for row in run.sweep]
    limits = sorted({row.limit for row in best_under(results)})
    assert 3 <= len(limits) <= 8
    assert min(values) <= limits[0] <= limits[-1] <= max(values)


def test_a_limit_that_only_some_seeds_keep_says_so(results):
    values = sorted(min(row["nll_test"] for row in run.sweep) for run in results.of("mle"))
    rows = {row.label: row for row in best_under(results, [values[0]])}
    assert rows["mle"][3:] == (1, 3)


def test_curves_of_agents_begin_where_pretraining_ended(results):
    figure = charts.curves(results, "nll_test")
    (axes,) = figure.axes
    ends = {line.get_gid(): line.get_xdata() for line in axes.lines if line.get_gid()}
    labels = list(charts.styles(results))
    assert list(ends[f"line-{labels.index('mle')}"]) == [0, 2, 4, 6, 8, 10]
    assert list(ends[f"line-{labels.index('seqgan')}"]) == [10, 15, 20, 25, 30]
    assert [text.get_text() for text in axes.texts] == ["end of pretraining"]


def test_infinite_values_are_left_out_of_charts_and_counted(results):
    axes = charts.curves(results, "nll_oracle").axes[0]
    assert "1 infinite point is not shown" in axes.get_xlabel()
    assert min(axes.lines[0].get_xdata()) == 2
    assert "4 infinite points are not shown" in charts.plane(results).axes[0].get_xlabel()


def test_a_run_that_is_not_finished_has_a_line_of_its_own_where_charts_grow(results):
    number = list(charts.styles(results)).index("random")
    lines = {line.get_gid(): line for line in charts.curves(results, "nll_test", growing=True).axes[0].lines}
    alone = lines[f"seed-2-line-{number}"]
    assert list(alone.get_ydata()) == [row["nll_test"] for row in results.runs["random", 2].curve]
    assert alone.get_linewidth() < lines[f"line-{number}"].get_linewidth()
    plain = [line.get_gid() for line in charts.curves(results, "nll_test").axes[0].lines]
    assert f"line-{number}" in plain
    assert f"seed-2-line-{number}" not in plain


@pytest.mark.parametrize("label", ["_hidden", "a$b$c", "猫", "x" * 60])
def test_any_label_has_its_place_in_charts(tmp_path, label):
    folder = write_fake_runs(tmp_path / "runs", seeds=(0, 1), labels=["mle", "pg-bleu"])
    for path in folder.rglob("run.json"):
        path.write_text(path.read_text(encoding="utf-8").replace('"pg-bleu"', json.dumps(label)), encoding="utf-8")
    results = Results.load(folder)
    legend = charts.plane(results).legends[0]
    assert [text.get_text().strip().replace("\\", "") for text in legend.get_texts()] == ["mle", label]
    Page(write_report(results, tmp_path).read_text(encoding="utf-8"))


@pytest.mark.parametrize(("place", "background"), [(0, "ffffff"), (1, "14171b")])
def test_the_colours_of_lines_stand_out(place, background):
    def light(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(map(float.__mul__, (0.2126, 0.7152, 0.0722), linear))

    for colours in charts.PALETTE:
        low, high = sorted([light(colours[place][1:]), light(background)])
        assert (high + 0.05) / (low + 0.05) >= 3, colours


def test_one_lone_run_has_a_report(tmp_path):
    results = Results.load(write_fake_runs(tmp_path / "runs", seeds=(4,), labels=["mle"]))
    text = write_report(results, tmp_path).read_text(encoding="utf-8")
    Page(text)
    assert "★</span>" not in text
    assert 'class="best"' not in text
    assert "<h1>Report of mle on the task oracle</h1>" in text


@pytest.mark.parametrize("missing", ["curves", "sweep", "samples", "sourced"])
def test_what_is_missing_is_left_out(tmp_path, missing):
    folder = write_fake_runs(tmp_path / "runs", seeds=(0, 1), **{missing: False})
    for name in ("report-curves.png", "report-plane.png"):
        (tmp_path / name).write_text("an earlier report's")
    text = write_report(Results.load(folder), tmp_path).read_text(encoding="utf-8")
    Page(text)
    headings = {"curves": "Learning curves", "sweep": "Quality and diversity", "samples": "Samples"}
    assert [name for name, heading in headings.items() if f"<h2>{heading}</h2>" not in text] == [missing] * (
        missing != "sourced"
    )
    assert (tmp_path / "report-curves.png").exists() == (missing != "curves")
    assert (tmp_path / "report-plane.png").exists() == (missing != "sweep")
    if missing == "sourced":
        assert "Best BLEU-4 over all temperatures at which self-BLEU-4 is at most the limit" in text
        assert "further to the upper left" in text


def test_nothing_finished_has_a_report_too(tmp_path):
    folder = write_fake_runs(tmp_path / "runs", seeds=(2,), labels=["ss"], curves=False)
    text = write_report(Results.load(folder), tmp_path).read_text(encoding="utf-8")
    Page(text)
    assert "ss, seed 2: failed" in text


def test_a_report_is_replaced_whole_and_leaves_nothing_else(results, tmp_path, monkeypatch):
    write_report(results, tmp_path)
    names = {"report.html", "report.md", "report.csv", "report-curves.png", "report-plane.png"}
    assert {path.name for path in tmp_path.iterdir()} == names
    before = (tmp_path / "report-plane.png").read_bytes()
    assert before.startswith(b"\x89PNG")

    def fail(figure, file):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(charts, "png", fail)
    with pytest.raises(OSError, match="no space"):
        write_report(results, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == names
    assert (tmp_path / "report-plane.png").read_bytes() == before


def test_tables_and_verdicts_need_no_matplotlib():
    heavy = ("matplotlib", "torch", "agents.common")
    code = f"import sys, agents.report.tables; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_terminals_table_fits(results):
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(terminal_table(results, console.width))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text
    assert re.search(r"pg-bleu +5\.9\d\d\* ± 0\.0\d\d", text)
    assert len(text.splitlines()) == 9 + 7  # no row is broken


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if BROWSER is None:
        pytest.skip("no Chromium here")
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


ORDER = "return [...document.querySelectorAll('#metrics th[scope=row]')].map(th => th.dataset.value)"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_the_page_fits_and_runs_without_errors(browser, page, width, scheme):
    browser.open(page, width, scheme)
    assert browser.run("return innerWidth") == width
    assert browser.run("return matchMedia('(prefers-color-scheme: dark)').matches") == (scheme == "dark")
    assert browser.run("document.querySelector('#all').click(); return document.documentElement.scrollWidth") <= width
    assert browser.run(OUTSIDE) == []
    assert browser.run(PALE) == []
    assert browser.seen("Runtime.exceptionThrown") == []
    assert browser.seen("Page.javascriptDialogOpening") == []
    asked = {event["request"]["url"] for event in browser.seen("Network.requestWillBeSent")}
    assert {url for url in asked if not url.startswith("data:")} == {page.as_uri()}


def test_headings_sort_by_click_and_by_keyboard(browser, page):
    browser.open(page, 1400, "light")
    order = ORDER + ".slice(0, 4)"
    state = "return [...document.querySelectorAll('#metrics th')].map(th => th.ariaSort).filter(s => s && s != 'none')"
    assert browser.run(order) == ["mle", "ss", "pg-bleu", "seqgan"]
    browser.run("document.querySelectorAll('#metrics thead button')[2].click()")
    assert browser.run(order) == ["pg-bleu", "seqgan", "ss", "mle"]
    assert browser.run(state) == ["ascending"]
    browser.run("document.querySelectorAll('#metrics thead button')[2].focus()")
    browser.press("Enter")
    assert browser.run(order) == ["mle", "ss", "seqgan", "pg-bleu"]
    assert browser.run(state) == ["descending"]
    last = "return [...document.querySelectorAll('#metrics tbody')].map(body => body.rows[0].textContent.trim())"
    assert browser.run(last) == ["agents", "controls", "references"]


def test_infinite_figures_sort_as_numbers(browser, page):
    browser.open(page, 1400, "light")
    order = ORDER + ".slice(4, 8)"
    browser.run("document.querySelectorAll('#metrics thead button')[2].click()")
    assert browser.run(order)[-1] == "uniform"
    browser.run("document.querySelectorAll('#metrics thead button')[2].click()")
    assert browser.run(order)[0] == "uniform"


def test_a_tapped_token_tells_its_credit_and_the_legend_hides_lines(browser, page):
    browser.open(page, 390, "light")
    browser.run("document.querySelector('.token[role]').click()")
    told = browser.run("return document.querySelector('output').textContent")
    assert re.search(r": credit [+-]\d\.\d{3}, value \d\.\d{3}$", told)
    look = "return [...document.querySelectorAll('[id$=\"-line-0\"]')].map(line => getComputedStyle(line).display)"
    assert set(browser.run(look)) == {"inline"}
    browser.run("document.querySelector('[data-line=\"0\"]').click()")
    assert set(browser.run(look)) == {"none"}


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        made = write_report(Results.load(write_fake_runs(Path(scratch) / "runs")), Path(scratch))
        GOLDEN.parent.mkdir(exist_ok=True)
        shutil.copy(made.with_name("report.md"), GOLDEN)
