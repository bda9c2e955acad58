"""Figures as files: offline HTML, PNG, SVG and Vega-Lite JSON, at the size that they have in print."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import vl_convert

from codi_tracing.analysis.io.atomic import write_json, write_whole
from codi_tracing.analysis.io.html import render
from codi_tracing.analysis.io.png_worker import PPI, SCALE, drawable


def vega_bundle() -> str:
    """The scripts that draw a page's figures, so that it needs no network."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


def save_figures(specs: Mapping[str, Any], folder: Path, bundle: str | None = None) -> Path:
    """Each Vega-Lite specification as NAME.html (offline), .png (300 dpi where it is 8 cm wide), .svg and .json."""
    if folder.is_file():
        raise ValueError(f"{folder}: is a file; expected a folder to write figures to")
    bundle = vega_bundle() if bundle is None else bundle
    folder.mkdir(parents=True, exist_ok=True)
    for name, spec in specs.items():
        picture = drawable(spec)
        write_json(folder / f"{name}.json", spec, indent=None)
        write_whole(folder / f"{name}.svg", vl_convert.vegalite_to_svg(picture).encode())
        write_whole(folder / f"{name}.png", vl_convert.vegalite_to_png(picture, ppi=PPI, scale=SCALE))
        page = render("figure.html", title=name, specs={name: spec}, bundle=bundle)
        write_whole(folder / f"{name}.html", page.encode())
    return folder
