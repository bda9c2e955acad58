"""Figures as files: offline HTML, PNG, SVG and Vega-Lite JSON, at the size that they have in print."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import vl_convert

from codi_tracing.analysis.io.html import figure, page
from codi_tracing.analysis.io.png_worker import PPI, SCALE, drawable


def vega_bundle() -> str:
    """The scripts that draw a page's figures, which then needs no network."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


def save_figures(specs: Mapping[str, Any], folder: Path, bundle: str | None = None) -> Path:
    """Each Vega-Lite specification as NAME.html (offline), .png (300 dpi where it is 8 cm wide), .svg and .json."""
    if folder.is_file():
        raise ValueError(f"{folder}: is a file; wanted a folder to write figures to")
    bundle = vega_bundle() if bundle is None else bundle
    folder.mkdir(parents=True, exist_ok=True)
    for name, spec in specs.items():
        (folder / f"{name}.json").write_text(json.dumps(spec, allow_nan=False), encoding="utf-8")
        (folder / f"{name}.svg").write_text(vl_convert.vegalite_to_svg(drawable(spec)), encoding="utf-8")
        (folder / f"{name}.png").write_bytes(vl_convert.vegalite_to_png(drawable(spec), ppi=PPI, scale=SCALE))
        (folder / f"{name}.html").write_text(page(name, [figure(name)], {name: spec}, bundle), encoding="utf-8")
    return folder
