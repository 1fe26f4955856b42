"""HTML templates: the report's, and templates of other packages that extend it."""

from __future__ import annotations

import jinja2


def find_template(name: str, package: str = "agents.report") -> jinja2.Template:
    """Load a template of a package, which may extend the templates of `agents.report`; values are HTML-escaped."""
    packages = dict.fromkeys((package, "agents.report"))
    templates = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(place, ".") for place in packages]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template(name)
