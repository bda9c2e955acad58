"""Each metric against an independent implementation, and what its values mean."""

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from patching import metrics as m


@pytest.fixture
def reading():
    generator = torch.Generator().manual_seed(0)
    patched, host = (torch.randn(2, 5, 11, generator=generator) * 3 for _ in range(2))
    clean, corrupted = (torch.randn(2, 1, 11, generator=generator) * 3 for _ in range(2))
    tokens = torch.tensor([[[4]], [[7]]]), torch.tensor([[[1]], [[0]]])
    return m.Reading(patched, host, clean, corrupted, *tokens)


def test_kl_agrees_with_torch_distributions_in_both_directions(reading):
    patched, clean, corrupted = (Categorical(logits=x) for x in (reading.patched, reading.clean, reading.corrupted))
    torch.testing.assert_close(m.kl_from_corrupted(reading), kl_divergence(patched, corrupted))
    torch.testing.assert_close(m.kl_to_clean(reading), kl_divergence(clean, patched))


def test_logit_difference_is_a_difference_of_two_logits(reading):
    value = m.logit_difference(reading)
    assert value.shape == (2, 5)
    assert value[1, 3] == reading.patched[1, 3, 7] - reading.patched[1, 3, 0]


def test_logit_difference_does_not_see_a_shift_of_all_logits(reading):
    shifted = reading._replace(patched=reading.patched + 5)
    torch.testing.assert_close(m.logit_difference(shifted), m.logit_difference(reading))


def test_rms_logit_difference_is_the_norm_over_the_root_of_the_vocabulary(reading):
    norm = torch.linalg.vector_norm(reading.patched - reading.corrupted, dim=-1)
    torch.testing.assert_close(m.rms_logit_difference(reading), norm / 11**0.5)


def test_nothing_changes_when_the_patched_run_is_the_host(reading):
    same = reading._replace(patched=reading.host)
    assert (m.max_logit_change(same) == 0).all()
    assert (m.prediction_change(same) == 0).all()


def test_prediction_change_is_one_exactly_where_the_argmax_differs(reading):
    expected = [
        [float(p.argmax() != h.argmax()) for p, h in zip(ps, hs, strict=True)]
        for ps, hs in zip(reading.patched, reading.host, strict=True)
    ]
    assert m.prediction_change(reading).tolist() == expected


def test_references_are_the_metric_of_the_unpatched_runs(reading):
    read = m.read_all({"ld": m.logit_difference}, reading)["ld"]
    torch.testing.assert_close(read[1], m.logit_difference(reading._replace(patched=reading.clean)).expand(2, 5))
    torch.testing.assert_close(read[2], m.logit_difference(reading._replace(patched=reading.corrupted)).expand(2, 5))


@pytest.mark.parametrize(("said", "clean", "corrupted"), [(7, 1, 0), (8, 0, 1), (9, 0, 0), (float("nan"), 0, 0)])
def test_an_answer_is_clean_corrupted_or_other(said, clean, corrupted):
    keys = m.Keys(7, 8)
    assert (m.answer_is_clean(said, keys), m.answer_is_corrupted(said, keys)) == (clean, corrupted)
