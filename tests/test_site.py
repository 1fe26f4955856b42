"""The site of the documentation: what `make docs` builds, and what it is built from."""

import importlib.util
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import agents
import text_gym
from tests.helpers.browser import BROWSER, Browser
from tests.helpers.site import faults

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(page.relative_to(DOCS).with_suffix("") for page in DOCS.rglob("*.md"))


def directives():
    """The names that the API reference documents, each with its directive."""
    text = "".join(page.read_text(encoding="utf-8") for page in (DOCS / "api").glob("*.md"))
    return re.findall(r"^\.\. auto(class|function|module):: (\S+)$", text, re.MULTILINE)


@pytest.mark.parametrize("package", [text_gym, agents], ids=lambda package: package.__name__)
def test_every_public_name_is_in_the_api_reference(package):
    documented = {name for _, name in directives()}
    assert {f"{package.__name__}.{name}" for name in package.__all__} <= documented


def test_names_in_the_api_reference_occur_once():
    names = [name for _, name in directives()]
    assert len(names) == len(set(names))


def test_what_the_pages_import_is_in_the_api_reference():
    documented = {name for _, name in directives()}
    text = "".join(page.read_text(encoding="utf-8") for page in DOCS.glob("*.md"))
    imported = re.findall(r"^ *from ((?:text_gym|agents)[\w.]*) import (.+)$", text, re.MULTILINE)
    names = {f"{module}.{name.strip()}" for module, listed in imported for name in listed.split(",")}
    same = {"text_gym.sequences.Batch": "text_gym.Batch"}
    assert {same.get(name, name) for name in names} <= documented


def test_every_page_is_in_the_contents():
    listed = {"index"}
    for index in (DOCS / "index.md", DOCS / "api" / "index.md"):
        for contents in re.findall(r"^```\{toctree\}\n(.*?)^```", index.read_text(encoding="utf-8"), re.M | re.S):
            names = [line for line in contents.splitlines() if line and not line.startswith(":")]
            listed |= {str((index.parent / name).relative_to(DOCS)) for name in names}
    assert listed == set(map(str, PAGES))


def test_the_page_on_the_report_has_its_sections():
    report = (ROOT / "agents" / "report" / "report.html").read_text(encoding="utf-8")
    sections = [re.sub(r" against \{\{.*", "", title) for title in re.findall(r"<h2>(.*?)</h2>", report)]
    headings = re.findall(r"^## (.+)$", (DOCS / "report.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[: len(sections)] == sections


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ('<a href="other.html#there">', None),
        ('<a href="https://example.org/x">', None),
        ('<a href="lost.html">', "lost.html leads nowhere"),
        ('<a href="other.html#lost">', "other.html#lost has no such anchor"),
        ('<a href="#lost">', "#lost has no such anchor"),
        ('<img src="lost.png">', "lost.png leads nowhere"),
        ('<script src="//example.org/x.js">', "loads //example.org/x.js"),
        ('<link rel="stylesheet" href="https://example.org/x.css">', "loads https://example.org/x.css"),
    ],
)
def test_faults_of_a_site_are_found(tmp_path, body, fault):
    (tmp_path / "other.html").write_text('<p id="there">', encoding="utf-8")
    (tmp_path / "index.html").write_text(body, encoding="utf-8")
    assert faults(tmp_path) == ([f"index.html: {fault}"] if fault else [])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built as `make docs` builds it."""
    for module in ("sphinx", "furo", "myst_parser"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed: pip install 'text-gym[docs]'")
    folder = tmp_path_factory.mktemp("site")
    recipe = re.search(r"^docs:.*\n\t.*sphinx-build (.+) docs site$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    command = [sys.executable, "-m", "sphinx", *recipe[1].split(), "-d", folder / "trees", DOCS, folder / "html"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return folder / "html"


@pytest.mark.slow
def test_the_site_has_no_faults(site):
    assert faults(site) == []
    assert {str(page) for page in PAGES} == {
        str(page.relative_to(site).with_suffix("")) for page in site.rglob("*.html")
    } - {"genindex", "search", "py-modindex"}


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_the_site_works_and_searches_without_a_server(site, tmp_path):
    browser = Browser(tmp_path)
    try:
        browser.open(site / "index.html", 1200, "light")
        browser.call("Page.navigate", url=f"{(site / 'search.html').as_uri()}?q=scheduled+sampling")
        links = "return [...document.querySelectorAll('#search-results li a')].map(a => a.getAttribute('href'))"
        end = time.monotonic() + 30
        while not any(link.startswith("agents.html") for link in browser.run(links)):
            assert time.monotonic() < end
            time.sleep(0.1)
        requests = [params["request"]["url"] for params in browser.seen("Network.requestWillBeSent")]
        assert requests
        assert all(url.startswith(("file:", "data:", "blob:")) for url in requests)
        assert not browser.seen("Runtime.exceptionThrown")
    finally:
        browser.close()
