"""The page of a comparison shows it from before its first run until after its last, and changes nothing."""

import contextlib
import json
import re
import shutil

import pytest
from filelock import FileLock

from agents.report.results import Results
from agents.report.run_files import COMPARISON, ERROR, LOG, NOW, RESULTS, SAMPLES
from agents.report.verdicts import verdicts
from agents.web import watch
from agents.web.server import LocalServer
from agents.web.watch import Watcher
from tests.helpers.browser import BROWSER, OUTSIDE, PALE, Browser
from tests.helpers.fake_runs import write_fake_runs
from tests.helpers.requests import ask

AGENTS = ["mle", "seqgan"]
NO_CHARTS = {"curves": [], "curves_legend": [], "plane": "", "plane_legend": [], "palette": []}


@pytest.fixture(autouse=True)
def drawings(monkeypatch, request):
    """How often charts were drawn, without drawing any; tests in a browser draw them, which takes long."""
    drawn = []
    if "browser" not in request.fixturenames:
        monkeypatch.setattr(watch, "pictures", lambda results, growing: drawn.append(growing) or NO_CHARTS)
    return drawn


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A comparison that is over: two agents, two seeds."""
    return write_fake_runs(tmp_path_factory.mktemp("made") / "runs", (0, 1), AGENTS, broken=False)


@pytest.fixture
def folder(made, tmp_path):
    """The same comparison, laid out and not begun."""
    folder = tmp_path / "runs"
    shutil.copytree(made, folder, ignore=shutil.ignore_patterns(RESULTS, SAMPLES, LOG))
    runs = [f"{label}/seed-{seed}" for seed in (0, 1) for label in AGENTS]
    (folder / COMPARISON).write_text(json.dumps({"runs": runs}), encoding="utf-8")
    return folder


def finish(folder, made, *runs):
    for run in runs:
        for name in (RESULTS, SAMPLES, LOG):
            shutil.copy(made / run / name, folder / run / name)
        (folder / run / NOW).unlink(missing_ok=True)


def note(run, **now):
    (run / NOW).write_text(json.dumps(now), encoding="utf-8")


@contextlib.contextmanager
def at_work(folder):
    """Hold the lock of a folder, as a comparison does."""
    with FileLock(folder / ".lock"):
        yield


def page(folder):
    return Watcher(folder).page("n", "t")


def status(text):
    return re.search('role="status">(.*?)</p>', text)[1]


def states(text):
    """What the page says of each run, by model and seed."""
    found = {}
    for label, runs in re.findall(r"<span>([\w-]+)</span></dt>(.*?)</dd>", text, re.DOTALL):
        for state, seed, said in re.findall(r'class="run (\w+)">seed (\d)<span class="note"[^>]*>(.*?)</span>', runs):
            found[label, int(seed)] = (state, said)
    return found


def files(folder):
    """Every file with its content and its times."""
    return {
        str(path.relative_to(folder)): (
            path.stat().st_mtime_ns,
            path.stat().st_ino,
            path.is_file() and path.read_bytes(),
        )
        for path in [folder, *folder.rglob("*")]
    }


def test_the_page_follows_a_comparison_from_before_its_folder_to_its_end(folder, made, tmp_path):
    watcher = Watcher(tmp_path / "later")

    def look():
        return watcher.page("n", "t")

    assert status(look()) == "There is no such folder yet; this page waits for it."
    (tmp_path / "later").mkdir()
    assert status(look()) == "There is no run in it yet; this page waits for one."
    folder = folder.rename(tmp_path / "later") if not any((tmp_path / "later").iterdir()) else None
    first, second = folder / "mle/seed-0", folder / "seqgan/seed-0"
    with at_work(folder):
        assert status(look()) == "0 of 4 runs have ended."
        assert set(states(look()).values()) == {("waiting", "waiting")}
        note(first, doing="learning", step=3, of=12)
        (first / LOG).write_text('{"time/step": 2, "eval/nll_oracle": 7.5}\n', encoding="utf-8")
        text = look()
        assert states(text)["mle", 0] == ("learning", "3 of 12")
        assert status(text) == "0 of 4 runs have ended, 1 is running."
        assert 'value="0.2500" aria-label="Steps that mle, seed 0, has learned"' in text
        assert "<h2>Figures</h2>" not in text
        note(first, doing="measuring")
        assert states(look())["mle", 0] == ("measuring", "measuring")
        finish(folder, made, "mle/seed-0")
        note(second, doing="learning", step=5, of=20)
        text = look()
        assert states(text)["mle", 0][0] == "finished"
        assert status(text).startswith("1 of 4 runs has ended, 1 is running")
        assert "<h2>Samples</h2>" in text
    stopped = look()
    assert states(stopped)["seqgan", 0] == ("stopped", "stopped at 5 of 20")
    assert states(stopped)["mle", 1] == ("waiting", "not started")
    assert "No process on this machine is working in this folder; run the same command again to resume." in status(
        stopped
    )
    with at_work(folder):
        assert states(look())["seqgan", 0] == ("learning", "5 of 20")
        finish(folder, made, "seqgan/seed-0")
        alone = look()
        assert "fewer than two seeds in common" in alone
        finish(folder, made, "mle/seed-1", "seqgan/seed-1")
    over = look()
    assert status(over) == "All 4 runs have ended."
    said = [verdict.text for verdict in verdicts(Results.load(made))]
    assert said
    assert all(text.replace("'", "&#39;").replace("<", "&lt;") in over for text in said)
    assert not any(text.replace("'", "&#39;").replace("<", "&lt;") in alone for text in said)
    shutil.rmtree(folder)
    assert status(look()) == "There is no such folder yet; this page waits for it."


def test_the_time_left_does_not_count_a_pause(folder, made, monkeypatch):
    finish(folder, made, "mle/seed-0", "seqgan/seed-0", "seqgan/seed-1")
    watcher, run = Watcher(folder), folder / "mle/seed-1"

    def look(now, step):
        monkeypatch.setattr(watch.time, "monotonic", lambda: now)
        note(run, doing="learning", step=step, of=100)
        return status(watcher.page("n", "t"))

    with at_work(folder):
        look(0, 10)
        assert look(10, 20) == "3 of 4 runs have ended, 1 is running; about 1:20 left."
    assert "left" not in look(3600, 20)
    with at_work(folder):
        look(7200, 20)
        assert look(7210, 30) == "3 of 4 runs have ended, 1 is running; about 1:10 left."


def test_watching_changes_nothing_in_the_folder(folder, made):
    finish(folder, made, "mle/seed-0", "mle/seed-1", "seqgan/seed-0")
    note(folder / "seqgan/seed-1", doing="learning", step=1, of=3)
    with at_work(folder):
        before = files(folder)
        with LocalServer(Watcher(folder).page, port=0) as server:
            for _ in range(3):
                assert ask(server)[0] == 200
        assert files(folder) == before
    with at_work(folder):  # which the page has not kept
        pass


def test_the_numbers_are_those_of_the_report(made):
    text = page(made)
    for label in AGENTS:
        for sample in Results.load(made).of(label)[0].samples:
            assert f"reward {sample['reward']:.3f}" in text
    cells = dict(re.findall(r'data-key="([^"]+)" data-value="([^"]+)"', text))
    means = {key: sum(v.values()) / 2 for key, v in ((k, Results.load(made).values("seqgan", k)) for k in cells)}
    assert {key: float(value) for key, value in cells.items()} == pytest.approx(means)


def test_a_single_run_of_train_is_watched(made, tmp_path):
    run = tmp_path / "one"
    shutil.copytree(made / "mle/seed-0", run)
    assert status(page(run)) == "The run has ended."
    (run / RESULTS).unlink()
    note(run, doing="learning", step=1, of=4)
    with at_work(run):
        text = page(run)
        assert status(text) == "0 of 1 runs have ended, 1 is running."
        assert states(text) == {("mle", 0): ("learning", "1 of 4")}


def test_a_run_that_failed_says_why_until_it_is_run_again(folder, made):
    finish(folder, made, "mle/seed-0")
    (folder / "seqgan/seed-0" / ERROR).write_text("Traceback:\nValueError: <b>no</b>\n", encoding="utf-8")
    text = page(folder)
    assert states(text)["seqgan", 0] == ("failed", "failed")
    assert status(text).startswith("2 of 4 runs have ended, 1 failed.")
    assert "seqgan, seed 0: ValueError: &lt;b&gt;no&lt;/b&gt;</summary>" in text
    assert "<b>no" not in text


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("mle/seed-0/run.json", "{", "cannot read"),
        ("mle/seed-0/results.json", "[]", "is damaged"),
        ("seqgan/seed-1/samples.json", "{}", "is damaged"),
        ("comparison.json", '{"runs": ["../../secret"]}', "&#39;../../secret&#39; lies outside of"),
        ("comparison.json", '{"runs": ["/etc"]}', "&#39;/etc&#39; lies outside of"),
        ("comparison.json", '{"runs": ["gone/seed-0"]}', "there is no run.json"),
        ("comparison.json", '{"runs": 5}', "lists no runs"),
    ],
)
def test_a_damaged_file_is_told_and_the_others_are_shown(folder, made, name, content, said):
    finish(folder, made, "mle/seed-1")
    (folder / name).write_text(content, encoding="utf-8")
    text = page(folder)
    assert said in text
    assert ("seqgan", 0) in states(text) or "comparison" in name


@pytest.mark.parametrize(
    "now", ["{", "[]", '{"doing": 5}', '{"doing": "learning", "step": Infinity, "of": 1}',
            '{"doing": "learning", "step": -4, "of": 0}', '{"doing": "<b>", "step": 9e99, "of": 3}'],
)  # fmt: skip
def test_any_note_of_progress_has_a_page(folder, now):
    (folder / "mle/seed-0" / NOW).write_text(now, encoding="utf-8")
    with at_work(folder):
        text = page(folder)
    assert "0 of 4 runs have ended" in status(text)
    assert "<b>" not in text


@pytest.mark.parametrize("name", [RESULTS, ERROR, SAMPLES, "."])
def test_links_out_of_the_folder_are_not_followed(folder, made, tmp_path, name):
    secret = tmp_path / "secret"
    secret.mkdir()
    for one in (RESULTS, SAMPLES, "run.json"):
        shutil.copy(made / "mle/seed-0" / one, secret / one)
    (secret / ERROR).write_text("the secret\n", encoding="utf-8")
    run = folder / "mle/seed-0"
    if name == ".":
        shutil.rmtree(run)
    (run if name == "." else run / name).symlink_to(secret if name == "." else secret / name)
    text = page(folder)
    assert "the secret" not in text
    assert re.search(rf"leads out of {re.escape(str(folder))}; put a copy in its place", text)
    assert ("mle", 0) not in states(text)
    link = tmp_path / "link"  # the folder itself may be one
    link.symlink_to(made)
    assert status(page(link)) == "All 4 runs have ended."


def test_hostile_names_stay_texts(folder, made, tmp_path):
    hostile = "</script><script>alert(1)</script>"
    for path in folder.rglob("run.json"):
        text = path.read_text(encoding="utf-8").replace('"seqgan"', json.dumps(hostile))
        path.write_text(text, encoding="utf-8")
    finish(folder, made, "mle/seed-0", "seqgan/seed-0")
    odd = folder.rename(tmp_path / "<script>alert(2)<")
    text = page(odd)
    assert text.count("<script") == 1
    assert text.count("</script>") == 1
    assert "&lt;script&gt;alert(1)" in text


def test_charts_are_drawn_again_only_when_they_have_changed(folder, made, drawings):
    watcher = Watcher(folder)
    with at_work(folder):
        for step in range(3):
            note(folder / "mle/seed-0", doing="learning", step=step, of=9)
            watcher.page("n", "t")
        assert len(drawings) == 1
        finish(folder, made, "mle/seed-0")
        watcher._next_drawing = 0
        watcher.page("n", "t")
        watcher.page("n", "t")
    assert drawings == [True, True]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if BROWSER is None:
        pytest.skip("no Chromium here")
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


def assert_nothing_went_wrong(browser):
    assert browser.seen("Runtime.exceptionThrown") == []
    assert browser.seen("Log.entryAdded") == []
    assert browser.seen("Page.javascriptDialogOpening") == []


@pytest.fixture(scope="module")
def shown(made):
    with LocalServer(Watcher(made).page, port=0) as server:
        ask(server)
        yield server


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_the_page_fits_and_runs_without_errors(browser, shown, width, scheme):
    browser.open(shown.address, width, scheme)
    browser.run("document.querySelector('.live details').open = true")
    assert browser.run("return document.documentElement.scrollWidth") <= width
    assert browser.run(OUTSIDE) == []
    assert browser.run(PALE) == []
    assert_nothing_went_wrong(browser)
    asked = {event["request"]["url"] for event in browser.seen("Network.requestWillBeSent")}
    assert {url for url in asked if not url.startswith("data:")} == {shown.address}


def test_the_open_page_grows_and_keeps_what_the_reader_has_chosen(browser, folder, made):
    finish(folder, made, "mle/seed-0", "seqgan/seed-0")
    note(folder / "mle/seed-1", doing="learning", step=1, of=4)
    with LocalServer(Watcher(folder).page, port=0) as server, at_work(folder):
        browser.open(server.address, 1400, "light")
        browser.run("document.querySelectorAll('#metrics thead button')[2].click()")  # NLL-oracle: seqgan is lower
        browser.run("document.querySelector('[data-line=\"0\"]').click()")
        browser.run("document.querySelector('#metrics').closest('section').querySelector('details').open = true")
        browser.run("document.querySelectorAll('#metrics thead button')[2].focus()")
        finish(folder, made, "mle/seed-1", "seqgan/seed-1")
        browser.until("document.querySelector('#status').textContent.startsWith('All 4 runs have ended')")
        rows = (
            "return [...document.querySelectorAll('#metrics tbody')[0].rows].map((row) => row.cells[0].dataset.value)"
        )
        assert browser.run(rows)[1:] == ["seqgan", "mle"]
        assert browser.run("return document.activeElement.textContent.trim()").startswith("NLL-oracle")
        hidden = (
            "return [...document.querySelectorAll('[id$=\"-line-0\"]')].map((one) => getComputedStyle(one).display)"
        )
        assert set(browser.run(hidden)) == {"none"}
        open_ones = "return document.querySelector('#metrics').closest('section').querySelector('details').open"
        assert browser.run(open_ones)
        assert browser.run("return document.querySelectorAll('#metrics td')[0].textContent") == "2"
        assert_nothing_went_wrong(browser)
    browser.until("!document.querySelector('#lost').hidden")
    assert browser.run("return document.querySelector('#lost').textContent").endswith(f"text-gym watch {folder}")
    with LocalServer(Watcher(folder).page, port=server.port):
        browser.until("document.querySelector('#lost').hidden")


def test_the_open_page_says_that_the_server_fails(browser, tmp_path, capsys):
    watcher, broken = Watcher(tmp_path), []

    def page(nonce, token):
        return f"{1 / 0}" if broken else watcher.page(nonce, token)

    with LocalServer(page, port=0) as server:
        browser.open(server.address, 1400, "light")
        broken.append(True)
        browser.until("!document.querySelector('#lost').hidden", seconds=5)
        said = "This page is not up to date: ZeroDivisionError: division by zero (the terminal says more)"
        assert browser.run("return document.querySelector('#lost').textContent") == said
        broken.clear()
        browser.until("document.querySelector('#lost').hidden", seconds=5)
    assert "Traceback" in capsys.readouterr().err
