"""HTML pages from the templates of `report/templates`: every value is escaped, and a page fetches nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

REPORT = Path(__file__).parents[1] / "report"  # its scripts stand beside its modules
ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader([REPORT / "templates", REPORT]),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "allow_nan": False}


def script_text(code: str) -> Markup:
    """JavaScript that no text in it can end."""
    return Markup(code.replace("</script", "<\\/script"))


def source_file(name: str) -> Markup:
    """One of our own scripts or style sheets, as it is."""
    assert ENVIRONMENT.loader is not None
    return Markup(ENVIRONMENT.loader.get_source(ENVIRONMENT, name)[0])


ENVIRONMENT.filters["script_text"] = script_text
ENVIRONMENT.globals["source_file"] = source_file


def render(template: str, **values: Any) -> str:
    """A page. `bundle` is Vega's JavaScript, `specs` maps the ids of the page's figures to Vega-Lite."""
    return ENVIRONMENT.get_template(template).render(values)
