"""Questions and cells side by side in rows: the columns of the cache, and what each cell sees of it."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor


class Sight(NamedTuple):
    """Per cell: whose cache entries it attends to in one phase; -1 is masked."""

    question: Int[Tensor, " cell"]  # the segment of the row, without its BoT
    bot: Int[Tensor, " cell"]  # the segment
    steps: Int[Tensor, "cell step"]  # the cell whose entry of each step

    def copy(self) -> Sight:
        """A copy that can be changed in place."""
        return Sight(*(tensor.clone() for tensor in self))


Sights = dict[int | None, Sight]  # by layer; `None` is every other layer


def on_device(value: Any, device: torch.device) -> Any:
    """A nested value with every tensor on a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: on_device(inner, device) for key, inner in value.items()}
    if isinstance(value, Sight):
        return Sight(*on_device(tuple(value), device))
    return tuple(on_device(inner, device) for inner in value) if isinstance(value, tuple) else value


@dataclass(frozen=True)
class Rows:
    """Questions side by side in rows, and the cells that read them.

    Each question is padded on the left to one width and ends in a placeholder for BoT. `reads[cell]` is the segment
    (question of the row) that a cell reads. By default a cell sees its own question and thought; `during` (for each
    latent step) and `after` (for the answer) replace that, so thoughts, questions and single entries are exchanged or
    knocked out without changing the cache. `stops` is the number of steps after which each cell's thought ends, if
    some stop early.

    A cell equals its host up to its first written step, so it need not run before: `first` is the step at which each
    begins (in rising order); until then its latents and entries are those of `hosts[cell]`, which begins at 0.
    """

    ids: Int[Tensor, "row segment token"]
    valid: Bool[Tensor, "row segment token"]
    reads: Int[Tensor, " cell"]
    during: tuple[Sights, ...] = ()
    after: Sights | None = None
    stops: Int[Tensor, " cell"] | None = None
    first: tuple[int, ...] = ()  # empty: all at 0
    hosts: Int[Tensor, " cell"] | None = None

    def to(self, device: torch.device) -> Rows:
        """The rows with every tensor on a device."""
        return Rows(**on_device(vars(self), device))

    @property
    def n_cells(self) -> int:
        return len(self.reads)

    @property
    def bot_position(self) -> Int[Tensor, "row segment"]:
        """The position of BoT, counted without padding."""
        return self.valid.sum(-1) - 1

    @property
    def bot_column(self) -> Int[Tensor, " segment"]:
        """The column of each BoT in the flattened row."""
        segments, width = self.ids.shape[1:]
        return torch.arange(1, segments + 1, device=self.ids.device) * width - 1

    @property
    def positions(self) -> Int[Tensor, "row token"]:
        return (self.valid.cumsum(-1) - 1).clamp(min=0).flatten(1)

    def column(self, cell: Int[Tensor, " n"], step: int) -> Int[Tensor, " n"]:
        """The cache column of a cell's entry of a latent step, at which it must have begun."""
        return self.ids[0].numel() + sum(map(self.begun, range(step))) + cell

    def begun(self, step: int) -> int:
        """How many cells run at a latent step; these are the first ones."""
        return bisect_right(self.first, step) if self.first else self.n_cells

    def thinker(self, cell: int, step: int) -> int:
        """The cell whose entry of a step belongs to a cell: its host before it begins, else itself."""
        return cell if self.hosts is None or self.first[cell] <= step else int(self.hosts[cell])

    def joined(self, step: int) -> Int[Tensor, " cell"]:
        """For each cell that runs at a step: the cell of the step before whose latent it takes."""
        cells = torch.arange(self.begun(step), device=self.ids.device)
        return cells if self.hosts is None else cells.where(cells < self.begun(step - 1), self.hosts[: len(cells)])

    def own(self, steps: int) -> Sight:
        """Every cell sees its own question and its own thought."""
        cells = torch.arange(self.n_cells, device=self.ids.device)[:, None].expand(-1, steps)
        if self.hosts is not None:
            late = torch.tensor(self.first, device=cells.device)[:, None] > torch.arange(steps, device=cells.device)
            cells = self.hosts[:, None].where(late, cells)
        return Sight(self.reads, self.reads, cells)

    def at_step(self, step: int) -> Sights:
        """What the cells see during a latent step."""
        return self.during[step] if step < len(self.during) else {None: self.own(step)}

    def at_answer(self, steps: int) -> Sights:
        """What the cells see during the answer; of a thought that stopped early, only the steps that it took."""
        sights = {layer: sight.copy() for layer, sight in (self.after or {None: self.own(steps)}).items()}
        if self.stops is not None:
            untaken = torch.arange(steps, device=self.ids.device) >= self.stops[:, None]
            for sight in sights.values():
                sight.steps[untaken] = -1
        return sights

    def question_mask(self) -> Bool[Tensor, "row query key"]:
        """Each question sees itself, causally. Padding sees itself, since no row of a mask may be empty."""
        segments, width = self.ids.shape[1:]
        causal = torch.ones(width, width, dtype=torch.bool, device=self.ids.device).tril()
        allowed = torch.block_diag(*[causal] * segments) & self.valid.flatten(1)[:, None]
        return allowed | torch.eye(segments * width, dtype=torch.bool, device=self.ids.device)

    def seen(self, sight: Sight, steps: int) -> Bool[Tensor, "row cell key"]:
        """Each cell's mask over the cache after some latent steps."""
        segments, width = self.ids.shape[1:]
        last = torch.arange(width, device=self.ids.device) == width - 1  # BoT
        tokens = torch.where(
            last, one_hot(sight.bot, segments)[..., None], one_hot(sight.question, segments)[..., None]
        )
        of_questions = (self.valid[:, None] & tokens[None]).flatten(2)
        of_steps = [one_hot(sight.steps[:, step], self.begun(step)) for step in range(steps)]
        rows = [part.expand(len(self.ids), -1, -1) for part in of_steps]
        return torch.cat([of_questions, *rows], -1)


def one_hot(indices: Int[Tensor, " n"], size: int) -> Bool[Tensor, "n size"]:
    """One-hot rows; -1 gives a row of False."""
    return indices[:, None] == torch.arange(size, device=indices.device)
