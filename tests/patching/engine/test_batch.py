"""Batches of pairs: memory runs out, numbers overflow, cells begin late."""

import pandas as pd
import pytest
import torch

from codi_tracing.patching.answer_metrics import WHOLE_ANSWER
from codi_tracing.patching.engine.batch import out_of_memory
from codi_tracing.patching.engine.batch_store import MemoryStore
from codi_tracing.patching.engine.sweep import sweep_cells
from codi_tracing.patching.interventions.cells import Cell
from codi_tracing.patching.interventions.sites import THOUGHT, Site, expand, first_step
from codi_tracing.patching.interventions.sources import itself, other, unrelated
from codi_tracing.patching.pairs.tokenized import tokenize_pairs
from codi_tracing.patching.runs.recipes import corner_cells
from codi_tracing.traces.loop.thought import run
from codi_tracing.traces.loop.tokens import answer_ids, encode
from codi_tracing.traces.model.loading import load_codi
from tests.support.checkpoints import write_random_checkpoint

METRICS = ("logit_difference", "kl_to_clean", "answer", "prediction_change", "edit_norm", *WHOLE_ANSWER)


class RecordingStore(MemoryStore):
    """Keeps the results that a sweep saves."""

    def __init__(self):
        self.results = []

    def save(self, batch, result):
        self.results.append(result)
        return result


def cells_of(model):
    sites = expand(model, ["stepwise", "suffixes"], ["resid", "kv", "latent"])
    return [Cell("denoising", other, site) for site in [*sites, THOUGHT]]


def counted_forwards(model, monkeypatch, most=None):
    """The number of tokens of each forward; with `most`, memory runs out where there are more."""
    seen = []
    decoder = model.decoder._module
    forward = decoder.forward

    def counting(*args, **kwargs):
        fed = kwargs.get("inputs_embeds")
        fed = kwargs["input_ids"] if fed is None else fed
        seen.append(fed.shape[1])
        if most is not None and fed.shape[1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(*args, **kwargs)

    monkeypatch.setattr(decoder, "forward", counting)
    return seen


@pytest.fixture
def own_model(tmp_path):
    """A model that a test may damage."""
    return load_codi(write_random_checkpoint(tmp_path / "own"), device="cpu")


def test_the_questions_are_encoded_once_for_all_blocks_of_a_batch(own_model, pairs, monkeypatch):
    ready, _ = tokenize_pairs(own_model, pairs[:2])
    width = 2 * (max(p.tokens for p in ready) + 1)
    seen = counted_forwards(own_model, monkeypatch)
    sweep_cells(own_model, ready, cells_of(own_model), metrics=["logit_difference"], cells_per_forward=4)
    assert seen.count(width) == 1


def test_a_cell_is_not_computed_before_its_first_written_step(own_model, pairs, monkeypatch):
    ready, _ = tokenize_pairs(own_model, pairs[:1])
    seen = counted_forwards(own_model, monkeypatch)
    cells = [Cell("denoising", other, Site("resid", 1, 1, step, step)) for step in range(6)]
    sweep_cells(own_model, ready, cells, metrics=["logit_difference"])
    assert seen[1:7] == [
        2 + begun for begun in (1, 2, 3, 4, 5, 6)
    ]  # the two unpatched runs, and the cells that have begun


def test_an_entry_is_read_from_the_next_step_on_and_a_thought_by_the_answer(model):
    assert [first_step(model, Site("kv", step=s, step_last=s)) for s in range(6)] == [1, 2, 3, 4, 5, 6]
    assert first_step(model, Site("kv", 1, 1, 2, 2)) == 2  # written into the cell's own entry
    assert first_step(model, THOUGHT) == 6
    assert first_step(model, Site("bot")) == 0


def test_no_unrelated_question_is_encoded_unless_a_cell_uses_it(own_model, pairs, monkeypatch):
    ready, _ = tokenize_pairs(own_model, pairs[:1])
    seen = counted_forwards(own_model, monkeypatch)
    sweep_cells(own_model, ready, [Cell("denoising", itself, THOUGHT)], metrics=["logit_difference"])
    sweep_cells(own_model, ready, [Cell("denoising", unrelated, THOUGHT)], metrics=["logit_difference"])
    asked = [tokens for tokens in seen if tokens > ready[0].tokens]
    assert asked == [2 * (ready[0].tokens + 1), 3 * (ready[0].tokens + 1)]


def test_if_memory_runs_out_fewer_cells_run_at_once_and_the_numbers_stay(own_model, pairs, monkeypatch):
    ready, _ = tokenize_pairs(own_model, pairs[:3])
    cells, store = cells_of(own_model), RecordingStore()
    whole = sweep_cells(own_model, ready, cells, metrics=METRICS)

    longest = 2 * (max(p.tokens for p in ready) + 1)
    seen = counted_forwards(own_model, monkeypatch, most=longest)
    halved = sweep_cells(own_model, ready, cells, metrics=METRICS, store=store)
    assert sum(result.halvings for result in store.results) > 0
    assert max(seen) > longest
    keys = [column for column in whole.columns if column not in ("patched", "clean", "corrupted")]
    pd.testing.assert_frame_equal(whole[keys], halved[keys])
    assert (whole["patched"] - halved["patched"]).abs().max() < 1e-5


def test_a_sweep_is_refused_if_not_even_one_cell_fits_into_memory(own_model, pairs, monkeypatch):
    ready, _ = tokenize_pairs(own_model, pairs[:2])
    counted_forwards(own_model, monkeypatch, most=1)
    with pytest.raises(MemoryError, match=r"pair \d+: one cell of one pair does not fit into memory; use a lower"):
        sweep_cells(own_model, ready, cells_of(own_model), metrics=["logit_difference"])


def test_an_error_that_is_not_about_memory_is_not_swallowed(own_model, pairs):
    ready, _ = tokenize_pairs(own_model, pairs[:1])

    def broken(reading):
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        sweep_cells(own_model, ready, cells_of(own_model), metrics=[broken])
    assert not out_of_memory(RuntimeError("shapes do not fit"))
    assert out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"))


def test_a_pair_whose_logits_overflow_has_no_rows_and_leaves_the_others_theirs(own_model, pairs):
    ready, _ = tokenize_pairs(own_model, pairs[:4])
    cells, store = [*cells_of(own_model), Cell("noising", unrelated, THOUGHT)], RecordingStore()
    before = sweep_cells(own_model, ready, cells, metrics=METRICS, donors=[()] * 4)

    def words(p):
        texts = (p.pair.clean.question, p.pair.corrupted.question)
        return {token for text in texts for token in own_model.tokenizer(text)["input_ids"]}

    only = next(iter(words(ready[2]) - words(ready[0]) - words(ready[1]) - words(ready[3])))
    own_model.embedding._module.weight.data[only] = float("inf")
    after = sweep_cells(own_model, ready, cells, metrics=METRICS, donors=[()] * 4, store=store)
    assert set(after["pair_id"]) == {"0", "1", "3"}
    ((pair, reason),) = [failure for result in store.results for failure in result.failed]
    assert pair == "2"
    assert reason.endswith("runs are not finite in float32")
    assert reason.startswith("the logits of ")
    kept = before[before["pair_id"] != "2"].reset_index(drop=True)
    assert (kept["patched"] - after["patched"]).abs().max() < 1e-5


def test_decoding_does_not_depend_on_the_forced_tokens(problems):
    trained = load_codi("traces/embedded/thought", device="cpu")
    prefix, count = answer_ids(trained), len(problems)
    rows = encode(trained, [[problem.question] for problem in problems])
    nothing = torch.zeros(count, 0, dtype=torch.long)
    free = run(trained, rows, nothing, max_new_tokens=9).tokens
    assert free[:, 0, : len(prefix)].tolist() == [prefix] * count  # it says the prefix itself
    odd = [*prefix[:2], prefix[0], *prefix[2:]]  # left in the middle
    for forced in (prefix, prefix[:1], odd, odd[::-1]):
        again = run(trained, rows, torch.tensor([forced] * count), max_new_tokens=9).tokens
        eos = trained.tokenizer.eos_token_id
        for mine, theirs in zip(again[:, 0].tolist(), free[:, 0].tolist(), strict=True):
            assert [*mine, eos][: [*mine, eos].index(eos)] == [*theirs, eos][: [*theirs, eos].index(eos)]
    assert (
        run(trained, rows, torch.tensor([prefix] * count), max_new_tokens=2).tokens.tolist() == free[:, :, :2].tolist()
    )


def test_the_corners_run_no_latent_step_of_their_own(model):
    from codi_tracing.configs.schema import RunConfig

    config = RunConfig(name="x", checkpoint="x", pairs={"file": "x"})
    assert {first_step(model, cell.site) for cell in corner_cells(config)} == {6}
