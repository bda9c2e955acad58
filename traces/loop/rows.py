"""Questions and cells side by side in rows: where everything stands in the cache, and what each cell sees of it."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor


class Sight(NamedTuple):
    """What the cells see of the cache in one phase, and whose: of the questions a segment, of each step a cell's entry.

    -1 is nobody's: that edge of the attention is cut.
    """

    question: Int[Tensor, " cell"]  # the question's tokens, without BoT
    bot: Int[Tensor, " cell"]
    steps: Int[Tensor, "cell step"]

    def copy(self) -> Sight:
        """A sight of its own, to be changed."""
        return Sight(*(tensor.clone() for tensor in self))


Sights = dict[int | None, Sight]  # by layer; that of `None` holds for all layers without one of their own


def moved(sights: Sights, device: torch.device) -> Sights:
    """The same sights on a device."""
    return {layer: Sight(*(tensor.to(device) for tensor in sight)) for layer, sight in sights.items()}


@dataclass(frozen=True)
class Rows:
    """Questions side by side in rows, and the cells that read them.

    Each question is padded on the left to one width and ends in a placeholder for BoT. `reads[cell]` is the segment
    (which question of the row) that a cell reads. A cell sees its own question and its own thought, unless `during`
    (sights for each latent step) or `after` (for the answer) say whose instead: so thoughts, questions and single
    entries are exchanged or cut without touching the cache. `stops` says after how many steps each cell's thought
    ends, where it does not take all that are run.

    A cell that is its host up to some step need not think until then: `first` says at which step each begins (in
    rising order), and before it the cell has the latents and the entries of `hosts[cell]`, which begins at 0.
    """

    ids: Int[Tensor, "row segment token"]
    valid: Bool[Tensor, "row segment token"]
    reads: Int[Tensor, " cell"]
    during: tuple[Sights, ...] = ()
    after: Sights | None = None
    stops: Int[Tensor, " cell"] | None = None
    first: tuple[int, ...] = ()  # none: all at 0
    hosts: Int[Tensor, " cell"] | None = None

    def to(self, device: torch.device) -> Rows:
        """The same, with every tensor on a device."""
        return replace(
            self,
            ids=self.ids.to(device),
            valid=self.valid.to(device),
            reads=self.reads.to(device),
            during=tuple(moved(sights, device) for sights in self.during),
            after=None if self.after is None else moved(self.after, device),
            stops=None if self.stops is None else self.stops.to(device),
            hosts=None if self.hosts is None else self.hosts.to(device),
        )

    @property
    def n_cells(self) -> int:
        return len(self.reads)

    @property
    def bot_position(self) -> Int[Tensor, "row segment"]:
        """The position of BoT, counted without padding."""
        return self.valid.sum(-1) - 1

    @property
    def bot_column(self) -> Int[Tensor, " segment"]:
        """Where BoT stands in the flattened row."""
        segments, width = self.ids.shape[1:]
        return torch.arange(1, segments + 1, device=self.ids.device) * width - 1

    @property
    def positions(self) -> Int[Tensor, "row token"]:
        return (self.valid.cumsum(-1) - 1).clamp(min=0).flatten(1)

    def column(self, cell: Int[Tensor, " n"], step: int) -> Int[Tensor, " n"]:
        """Where a cell's entry of a latent step, at which it has begun, stands in the cache."""
        return self.ids[0].numel() + sum(map(self.begun, range(step))) + cell

    def begun(self, step: int) -> int:
        """How many cells think at a latent step: they are the first ones."""
        return bisect_right(self.first, step) if self.first else self.n_cells

    def thinker(self, cell: int, step: int) -> int:
        """Whose entry of a step is a cell's own: its host's, before it has begun."""
        return cell if self.hosts is None or self.first[cell] <= step else int(self.hosts[cell])

    def joined(self, step: int) -> Int[Tensor, " cell"]:
        """Of the cells that thought one step earlier, whose latent each takes that thinks at this one."""
        cells = torch.arange(self.begun(step), device=self.ids.device)
        return cells if self.hosts is None else cells.where(cells < self.begun(step - 1), self.hosts[: len(cells)])

    def own(self, steps: int) -> Sight:
        """The sight of cells that see their own question and thought, with nothing exchanged or cut."""
        cells = torch.arange(self.n_cells, device=self.ids.device)[:, None].expand(-1, steps)
        if self.hosts is not None:
            late = torch.tensor(self.first, device=cells.device)[:, None] > torch.arange(steps, device=cells.device)
            cells = self.hosts[:, None].where(late, cells)
        return Sight(self.reads, self.reads, cells)

    def at_step(self, step: int) -> Sights:
        """What the cells see while they think a step."""
        return self.during[step] if step < len(self.during) else {None: self.own(step)}

    def at_answer(self, steps: int) -> Sights:
        """What they see while they answer: of a thought that stopped early, the steps that it took."""
        sights = {layer: sight.copy() for layer, sight in (self.after or {None: self.own(steps)}).items()}
        if self.stops is not None:
            untaken = torch.arange(steps, device=self.ids.device) >= self.stops[:, None]
            for sight in sights.values():
                sight.steps[untaken] = -1
        return sights

    def question_mask(self) -> Bool[Tensor, "row query key"]:
        """Each question sees itself, causally. Padding sees only itself: a row of a mask may not be empty."""
        segments, width = self.ids.shape[1:]
        causal = torch.ones(width, width, dtype=torch.bool, device=self.ids.device).tril()
        allowed = torch.block_diag(*[causal] * segments) & self.valid.flatten(1)[:, None]
        return allowed | torch.eye(segments * width, dtype=torch.bool, device=self.ids.device)

    def seen(self, sight: Sight, steps: int) -> Bool[Tensor, "row cell key"]:
        """What each cell sees of the cache after so many latent steps."""
        segments, width = self.ids.shape[1:]
        last = torch.arange(width, device=self.ids.device) == width - 1  # BoT
        tokens = torch.where(last, chosen(sight.bot, segments)[..., None], chosen(sight.question, segments)[..., None])
        of_questions = (self.valid[:, None] & tokens[None]).flatten(2)
        of_steps = [chosen(sight.steps[:, step], self.begun(step)) for step in range(steps)]
        rows = [part.expand(len(self.ids), -1, -1) for part in of_steps]
        return torch.cat([of_questions, *rows], -1)


def chosen(indices: Int[Tensor, " n"], size: int) -> Bool[Tensor, "n size"]:
    """One-hot rows; a row of `False` for -1."""
    return indices[:, None] == torch.arange(size, device=indices.device)
