"""Figures as files: offline HTML, PNG, SVG and Vega-Lite JSON, at the size that they have in print."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import vl_convert

from codi_tracing.analysis.io.atomic import write_json, write_whole
from codi_tracing.analysis.io.html import render
from codi_tracing.analysis.io.png_worker import png_of, svg_of


def vega_bundle() -> str:
    """The scripts that draw a page's figures, so that it needs no network."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


def save_figures(specs: Mapping[str, Any], folder: Path, bundle: str | None = None) -> dict[str, str]:
    """Each Vega-Lite specification as NAME.html (offline), .png (300 dpi where it is 8 cm wide), .svg and .json.

    Returns why a figure could not be drawn, by name; it stops no other.
    """
    if folder.is_file():
        raise ValueError(f"{folder}: is a file; expected a folder to write figures to")
    bundle = vega_bundle() if bundle is None else bundle
    folder.mkdir(parents=True, exist_ok=True)
    faults = {}
    for name, spec in specs.items():
        write_json(folder / f"{name}.json", spec, indent=None)
        page = render("figure.html", title=name, specs={name: spec}, bundle=bundle)
        write_whole(folder / f"{name}.html", page.encode())
        try:
            svg = svg_of(spec)
            write_whole(folder / f"{name}.svg", svg.encode())
            write_whole(folder / f"{name}.png", png_of(svg))
        except ValueError as error:
            faults[name] = str(error).splitlines()[0][:300]
    return faults


def warn_of_faults(faults: Mapping[str, str]) -> None:
    """Warn that figures were not drawn as files, and why the first was not."""
    for name, fault in [*faults.items()][:1]:
        count = "a figure was" if len(faults) == 1 else f"{len(faults)} figures were"
        warnings.warn(f"{count} not drawn as a file; {name}: {fault}", stacklevel=3)
