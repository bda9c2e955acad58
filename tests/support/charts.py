"""What a chart contains, read from its Vega-Lite specification."""

import altair as alt


def drawn(chart: alt.TopLevelMixin) -> dict:
    """The chart's Vega-Lite, checked against its schema."""
    return chart.to_dict()


def words(spec: dict) -> str:
    """All that a chart's heading says."""
    return " ".join([*spec["title"]["text"], *spec["title"]["subtitle"]])
