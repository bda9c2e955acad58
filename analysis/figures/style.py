"""The look of all charts: colours, sizes, titles, fonts and grid."""

from __future__ import annotations

import textwrap
from typing import Any

import altair as alt

# Okabe and Ito's colours, told apart by colour-blind readers.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#8A8A8A"
DIRECTION_COLOURS = {"denoising": BLUE, "noising": ORANGE}
WIDTH = 330  # pixels: readable when printed 8 cm wide


def heading(title: str, *lines: str, width: int = WIDTH) -> alt.TitleParams:
    """A title and grey lines below it, wrapped to the chart's width."""
    columns = max(width // 6, 40)
    return alt.TitleParams(
        text=textwrap.wrap(title, int(columns * 0.92)),
        subtitle=[part for line in lines for part in textwrap.wrap(line, columns)],
        anchor="start",
        frame="bounds",
        fontSize=13,
        subtitleFontSize=11,
        subtitleColor="#555",
        subtitlePadding=4,
        offset=10,
    )


def dress(chart: Any, title: alt.TitleParams) -> Any:
    """The chart with its heading and the common fonts and grid. No global state is set."""
    return (
        chart.properties(title=title)
        .configure(background="white", padding=8)
        .configure_view(stroke=None)
        .configure_axis(labelFontSize=11, titleFontSize=11, titleFontWeight="normal", gridColor="#e6e6e6", labelLimit=0)
        .configure_legend(labelFontSize=11, titleFontSize=11, titleFontWeight="normal", labelLimit=0, titleLimit=0)
        .configure_header(labelFontSize=11, titleFontSize=11)
    )
