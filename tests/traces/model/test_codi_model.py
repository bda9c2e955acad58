"""The modules of a CODI model by their names, for both families."""

import torch

from codi_tracing.traces.loop.thought import run
from codi_tracing.traces.loop.tokens import encode


def test_sizes_are_read_off_the_model(model):
    assert (model.n_layers, model.n_latents, model.d_model) == (3, 6, 32)
    assert model.loaded == (21, 21)


@torch.no_grad()
def test_attention_and_mlp_add_up_to_the_residual_stream_and_heads_to_the_attention(both, problems):
    kinds = ("head", "attn", "mlp", "resid")
    rows = encode(both, [[problem.question] for problem in problems[:2]])

    def save(block, layer, step):
        return tuple(both.activation(block, kind)[:, 0].clone() for kind in kinds)

    steps = run(both, rows, torch.zeros(2, 0, dtype=torch.long), edits=[save], n_latents=1).saved.steps
    assert len(steps) == both.n_layers > 1
    for layer, (heads, attn, mlp, resid) in enumerate(steps):
        block = both.blocks[layer]._module
        output_projection = getattr(getattr(block, both.family.attention), both.family.heads)
        torch.testing.assert_close(output_projection(heads), attn, atol=1e-5, rtol=0)
        if layer > 0:
            torch.testing.assert_close(steps[layer - 1][-1] + attn + mlp, resid, atol=1e-5, rtol=0)
