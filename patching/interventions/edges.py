"""Attention knockout: edges that are removed from the attention mask (Geva et al., arXiv 2304.14767).

`answer-question` hides the question from EoT, prefix and answer; `answer-3` hides step 3 from them; `4-1` hides step 1
from step 4; `4-1@2` does so in layer 2 alone. Nothing replaces the hidden entries, so a run with a knockout is off the
distribution that the model was trained on: say so beside every number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from codi_tracing.patching.interventions.sites import Sized

if TYPE_CHECKING:
    from codi_tracing.traces.loop.rows import Sights

FORM = re.compile(r"(answer|\d+)-(question|bot|\d+)(?:@(\d+))?")


class Edge(NamedTuple):
    """An attention edge: `reader` is a latent step, or `None` for the answer; `layer` is `None` for all layers."""

    reader: int | None
    read: int | str
    layer: int | None = None

    def __str__(self) -> str:
        reader = "answer" if self.reader is None else self.reader
        return f"{reader}-{self.read}" + ("" if self.layer is None else f"@{self.layer}")


def edge(text: str) -> Edge:
    """Parse an edge as written in a config."""
    match = FORM.fullmatch(text)
    if match is None:
        raise ValueError(
            f"edge {text!r} is unknown; write answer-question, answer-bot, answer-3, 4-1, or 4-1@2 (layer)"
        )
    reader, read, layer = match.groups()
    return Edge(
        None if reader == "answer" else int(reader),
        int(read) if read.isdigit() else read,
        None if layer is None else int(layer),
    )


def check_edge(model: Sized, knockout: Edge) -> None:
    """Refuse steps and layers that the model does not have, and a step that would read a later one."""
    for what, index, size in (
        ("step", knockout.reader, model.n_latents),
        ("step", knockout.read if isinstance(knockout.read, int) else None, model.n_latents),
        ("layer", knockout.layer, model.n_layers),
    ):
        if index is not None and index >= size:
            raise ValueError(f"edge {knockout}: {what} {index} does not exist; this model has {what}s 0 to {size - 1}")
    if knockout.reader is not None and isinstance(knockout.read, int) and knockout.read >= knockout.reader:
        raise ValueError(
            f"edge {knockout}: step {knockout.reader} does not read step {knockout.read}; a step reads earlier ones"
        )


def knock_out(during: Sequence[Sights], after: Sights, knockouts: Iterable[tuple[int, Edge]]) -> None:
    """Mask each (run, edge) in place, edges of all layers first."""
    for run, knockout in sorted(knockouts, key=lambda item: item[1].layer is not None):
        sights = after if knockout.reader is None else during[knockout.reader]
        sight = sights.setdefault(knockout.layer, sights[None].copy())
        if isinstance(knockout.read, int):
            sight.steps[run, knockout.read] = -1
        else:
            getattr(sight, knockout.read)[run] = -1
