"""Attention of heads that share keys, computed together, equals that of each head alone."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from codi_tracing.traces.loop.recording import record
from codi_tracing.traces.model.grouped_attention import NAME, additive, grouped_attention
from codi_tracing.traces.model.loading import load_codi


def random_mask(rows, queries, keys):
    seen = torch.rand(rows, queries, keys, generator=torch.Generator().manual_seed(0)) < 0.5
    return seen | torch.eye(queries, keys, dtype=torch.bool)


@pytest.mark.parametrize(("heads", "shared"), [(8, 2), (4, 4), (6, 1)])
def test_grouped_attention_equals_attention_with_repeated_keys(heads, shared):
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(2, heads, 5, 16, generator=generator)
    key, value = (torch.randn(2, shared, 23, 16, generator=generator) for _ in range(2))
    seen = random_mask(2, 5, 23)
    module = torch.nn.Module()
    module.num_key_value_groups, module.is_causal = heads // shared, True
    mask = additive(seen, heads // shared, torch.float32)
    found, _ = grouped_attention(module, query, key, value, mask, scaling=0.3)
    repeated = (tensor.repeat_interleave(heads // shared, 1) for tensor in (key, value))
    expected = scaled_dot_product_attention(query, *repeated, attn_mask=seen[:, None], scale=0.3)
    torch.testing.assert_close(found, expected.transpose(1, 2))


def test_an_additive_mask_is_zero_where_a_key_is_seen_and_minus_infinity_elsewhere():
    seen = random_mask(2, 3, 7)
    mask = additive(seen, 4, torch.bfloat16)
    assert mask.shape == (2, 1, 12, 7)
    assert (mask.unflatten(2, (4, 3)) == torch.where(seen, 0.0, -torch.inf)[:, None, None]).all()
    assert mask.stride(-2) % 16 == 0  # rows are aligned


def test_a_model_thinks_the_same_with_its_own_attention(random_checkpoint, problems):
    questions = [problem.question for problem in problems]
    grouped, own = (load_codi(random_checkpoint, device="cpu") for _ in range(2))
    own.lm._module.set_attn_implementation("sdpa")
    assert grouped.lm.config._attn_implementation == NAME
    assert (grouped.group, own.group) == (2, 1)
    mine, theirs = record(grouped, questions), record(own, questions)
    torch.testing.assert_close(mine.resid, theirs.resid, atol=1e-5, rtol=0)
    assert mine.answers == theirs.answers


def test_a_family_without_shared_keys_keeps_its_attention(both):
    assert (both.lm.config._attn_implementation == NAME) == (both.lm.config.model_type == "llama")
