"""Sphinx makes the site of these pages and of the docstrings: `make docs`.

Sphinx, with furo and MyST, because it checks links and anchors, searches without a server or a network, and reads the
doctests in docstrings; PyTorch, Gymnasium and Stable-Baselines3 use it too. MkDocs 1 and its theme Material are no
longer developed, and their successor Zensical, still in beta, loads a script from another host to search local files.
"""

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, GoogleDocstring

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import text_gym  # noqa: E402

project = "text_gym"
author = copyright = "The text_gym authors"
version = release = text_gym.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]

html_theme = "furo"
html_title = f"text_gym {release}"
html_copy_source = False
html_show_sourcelink = False
html_show_search_summary = False  # pages that are opened as files may not fetch others
html_theme_options = {"top_of_page_buttons": []}

myst_heading_anchors = 4  # the same anchors as on GitHub
default_role = "py:obj"  # `Name` in a docstring is a link where the name is documented, and code elsewhere
add_module_names = False
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "undoc-members": True}
autodoc_typehints_format = "short"
autodoc_type_aliases = dict(zip(*[["TaskSpec", "RewardSpec", "Constraint", "npt.ArrayLike"]] * 2, strict=True))
autodoc_class_signature = "mixed"
python_display_short_literal_types = True
python_maximum_signature_line_length = 100

ABOVE = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "README.md": "index.md"}


def include_page_above(app: Sphinx, page: str, source: list[str]) -> None:
    """Replace a page that only links to a file above docs/, where GitHub looks for it, by that file."""
    for name, target in ABOVE.items():
        if f"{page}.md" == target and name != "README.md":
            text = (ROOT / name).read_text(encoding="utf-8")
            source[0] = re.sub(r"\]\((?!https?:|#)", "](../", text).replace("](../docs/", "](")
    for name, target in ABOVE.items():
        source[0] = source[0].replace(f"](../{name}", f"]({target}")


def as_restructured_text(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Rewrite the Markdown of a docstring, and its sections in Google's style, as reStructuredText."""
    text = "\n".join(lines)
    text = re.sub(r"^## (.+)$", r"**\1**\n", text, flags=re.MULTILINE)
    text = re.sub(r"(?:^ *\|.*\|\n?)+", _as_list_table, text, flags=re.MULTILINE)
    text = re.sub(r"(?<=\w:)(?=\n\n {4})", ":", text)  # an indented block after a colon is shown as it is
    text = re.sub(r"(?<!`)`([^`]+)`(?!`)", _as_link_or_code, text)
    text = re.sub(r"(?<![`\w])(\w+)_(?![\w`])", r"\1\\_", text)  # `nll_` is no reference
    lines[:] = text.split("\n")
    if what != "attribute":  # where napoleon takes what stands before a colon for the type
        lines[:] = GoogleDocstring(lines, Config(), app, what, name, obj, options).lines()


def _as_link_or_code(name: re.Match[str]) -> str:
    """Make a link of a name that only one thing can have: a class or a dotted name."""
    return name[0] if re.fullmatch(r"[A-Z]\w*[a-z]\w*|[A-Z]+|\w+(\.\w+)+", name[1]) else f"``{name[1]}``"


def _as_list_table(table: re.Match[str]) -> str:
    margin = table[0][: table[0].index("|")]
    rows = [re.split(r"\s*\|\s*", row.strip().strip("|").strip()) for row in table[0].splitlines()]
    cells = [f"{'  ' if i else '* '}- {cell}" for row in [rows[0], *rows[2:]] for i, cell in enumerate(row)]
    content = ["", ".. list-table::", "   :header-rows: 1", "", *[f"   {cell}" for cell in cells], "", ""]
    return "\n".join(margin + line if line else "" for line in content)


def with_short_types(
    app: Sphinx, what: str, name: str, obj: object, options: object, signature: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """Name the aliases of types in a signature, without what Sphinx wraps around them."""
    return signature and re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", signature), returned


def setup(app: Sphinx) -> None:
    """Register the rewritings."""
    app.connect("source-read", include_page_above)
    app.connect("autodoc-process-docstring", as_restructured_text)
    app.connect("autodoc-process-signature", with_short_types)
