"""Results from Python: their numbers are those of the run files, and they show what they are."""

import io
import json
import subprocess
import sys

import pytest

from agents import Results
from agents.report import charts
from agents.report.columns import column_of
from tests.helpers.fake_runs import write_fake_runs
from text_gym.errors import DataError, DependencyError, OptionError


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return Results.load(write_fake_runs(tmp_path_factory.mktemp("runs")))


def test_a_data_frame_has_a_row_for_each_model_seed_and_metric(results):
    frame = results.to_dataframe()
    assert list(frame) == ["model", "kind", "seed", "metric", "value", "better"]
    assert not frame.duplicated(["model", "seed", "metric"]).any()
    assert list(frame.model.unique()) == results.labels
    found = {(row.model, row.seed, row.metric): row.value for row in frame.itertuples()}
    files = {}
    for path in results.out.rglob("results.json"):
        spec = json.loads(path.with_name("run.json").read_text(encoding="utf-8"))
        for key, value in json.loads(path.read_text(encoding="utf-8"))["figures"].items():
            files[spec["label"], spec["seed"], key] = float(value)
    assert found == files
    assert set(frame[frame.model == "constant"].kind) == {"control"}
    assert dict(zip(frame.metric, frame.better, strict=True))["nll_test"] == "lower"
    assert [str(frame[name].dtype) for name in ("seed", "value")] == ["int64", "float64"]
    wide = frame.pivot_table(index="model", columns="metric", values="value")  # what tidy rows are for
    assert wide.loc["mle", "bleu4"] == pytest.approx(sum(results.values("mle", "bleu4").values()) / 3)


def test_curves_and_sweeps_are_data_frames_too(results):
    curves = results.to_dataframe("curves")
    assert list(curves) == ["model", "kind", "seed", "step", "metric", "value", "better"]
    its = curves[(curves.model == "seqgan") & (curves.seed == 1) & (curves.metric == "nll_test")]
    run = results.of("seqgan")[1]
    assert list(zip(its.step, its.value, strict=True)) == [(row["step"], row["nll_test"]) for row in run.curve]
    assert str(curves.step.dtype) == "int64"
    assert "step" not in set(curves.metric)

    sweep = results.to_dataframe("sweep")
    assert list(sweep) == ["model", "kind", "seed", "temperature", "metric", "value", "better"]
    its = sweep[(sweep.model == "mle") & (sweep.seed == 0) & (sweep.metric == "bleu4")]
    assert list(its.temperature) == [0.5, 0.75, 1.0, 1.25]
    assert list(its.value) == [row["bleu4"] for row in results.of("mle")[0].sweep]


def test_a_data_frame_of_nothing_has_its_columns(tmp_path):
    unfinished = Results.load(write_fake_runs(tmp_path, seeds=(2,), labels=["ss"], curves=False))
    for part in ("figures", "curves", "sweep"):
        frame = unfinished.to_dataframe(part)
        assert len(frame) == 0
        assert {"model", "seed", "metric", "value"} < set(frame)


def test_a_data_frame_needs_pandas(results, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(DependencyError, match=r"to_dataframe\(\) needs pandas: pip install 'text-gym\[dataframe\]'"):
        results.to_dataframe()


def test_charts_are_figures_that_a_notebook_shows_once(results):
    assert [axes.get_ylabel() for axes in results.plot_curves("entropy", "nll_test").axes] == [
        "entropy, nats per token",
        "NLL-test, nats per token\n(lower is better)",
    ]
    assert len(results.plot_curves().axes) == 2
    frontier = results.plot_frontier()
    assert frontier.axes[0].get_ylabel() == "NLL-oracle, nats per token\n(lower is better)"
    file = io.BytesIO()
    frontier.savefig(file, format="svg")
    assert b"<svg" in file.getvalue()
    for figure in (results.plot_curves(), frontier):
        assert figure._repr_png_().startswith(b"\x89PNG")
        assert isinstance(figure, charts.Chart)


def test_legends_stay_inside_their_charts(results):
    for figure in (results.plot_frontier(), results.plot_curves("entropy"), results.plot_curves()):
        figure.draw_without_rendering()
        box = figure.legends[0].get_window_extent()
        assert 0 <= box.x0 < box.x1 <= figure.bbox.width


def test_charts_leave_pyplot_alone(results):
    code = (
        f"import sys; from agents import Results; results = Results.load({str(results.out)!r})\n"
        "results.plot_curves(), results.plot_frontier(), results._repr_html_(), str(results)\n"
        "print([name for name in ('matplotlib.pyplot', 'pandas', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_charts_that_cannot_be_drawn_say_why(tmp_path, results):
    with pytest.raises(OptionError, match="no learning curve of 'bleu9'; these runs have nll_oracle, nll_test, ent"):
        results.plot_curves("bleu9")
    bare = Results.load(write_fake_runs(tmp_path, seeds=(0,), labels=["mle"], curves=False, sweep=False))
    with pytest.raises(DataError, match="no learning curves; compare agents with points above 0"):
        bare.plot_curves()
    with pytest.raises(DataError, match="no temperature sweep; compare agents with temperatures"):
        bare.plot_frontier()
    with pytest.raises(OptionError, match="part must be one of 'figures', 'curves', 'sweep', not 'curve'"):
        results.to_dataframe("curve")


def test_results_say_what_they_are(results, tmp_path):
    assert repr(results) == (
        f"Results(4 agents, 4 controls, 1 reference, 3 seeds, 2 of 27 runs without results, out={str(results.out)!r})"
    )
    one = Results.load(write_fake_runs(tmp_path, seeds=(0,), labels=["mle"]))
    assert repr(one) == f"Results(1 agent, 1 seed, out={str(tmp_path)!r})"
    assert str(one) == "Report of mle on the task oracle"


def test_printed_results_are_the_verdicts(results):
    title, *lines = str(results).splitlines()
    assert title == "Comparison of mle, ss, pg-bleu and seqgan on the task oracle"
    assert lines[0].startswith("There is no significant difference between ss and its warm start mle on 6 metrics.")
    assert "Missing runs: ss, seed 2 (failed); random, seed 2 (unfinished)." in lines
    sentences = [verdict.text for verdict in results.verdicts]
    assert [line.strip() for line in lines[-len(sentences) :]] == sentences
    assert {verdict.label for verdict in results.verdicts} == {"ss", "pg-bleu", "seqgan"}


def test_a_notebook_shows_a_table_in_which_labels_stay_text(tmp_path):
    folder = write_fake_runs(tmp_path, seeds=(0, 1), labels=["mle", "pg-bleu"])
    for path in folder.rglob("run.json"):
        path.write_text(path.read_text(encoding="utf-8").replace('"pg-bleu"', '"<script>1</script>"'), encoding="utf-8")
    results = Results.load(folder)
    html = results._repr_html_()
    assert "<script>" not in html
    assert "<th>&lt;script&gt;1&lt;/script&gt;</th><td>agent</td><td>2</td>" in html
    assert html.count("<tr>") == 3
    mean = sum(results.values("mle", "nll_test").values()) / 2
    assert f"<b>{column_of('nll_test').show(mean)}</b>" in html


def test_what_results_print_cannot_steer_a_terminal(tmp_path):
    folder = write_fake_runs(tmp_path, seeds=(0,), labels=["mle"])
    for path in folder.rglob("run.json"):
        path.write_text(path.read_text(encoding="utf-8").replace('"mle"', r'"\u001b[31mred"'), encoding="utf-8")
    assert str(Results.load(folder)) == r"Report of \x1b[31mred on the task oracle"


def test_a_report_is_written_beside_the_runs(results, tmp_path):
    assert results.write_report(tmp_path / "report") == tmp_path / "report" / "report.html"
    assert (tmp_path / "report" / "report.md").exists()
    again = Results.load(write_fake_runs(tmp_path / "runs", seeds=(0,), labels=["mle"]))
    assert again.write_report() == tmp_path / "runs" / "report.html"


def test_folders_without_results_are_refused(tmp_path):
    with pytest.raises(OptionError, match="name a folder of results"):
        Results.load()
    with pytest.raises(DataError, match="there is no folder"):
        Results.load(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"there is no run\.json in or below"):
        Results.load(tmp_path)
