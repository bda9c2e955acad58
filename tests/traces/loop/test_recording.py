"""A recorded thought, with and without a user's edit."""

import torch

from codi_tracing.traces.loop.recording import record

EXACT = 1e-5


def test_a_users_edit_runs_at_every_block_of_every_latent_step(model, problems):
    calls = []

    def silence(block, layer, step):
        calls.append((layer, step))
        if (layer, step) == (1, 2):
            block.output[:, 0] = 0.0

    questions = [p.question for p in problems[:2]]
    edited, plain = record(model, questions, edits=[silence]), record(model, questions)
    assert calls == [(layer, step) for step in range(model.n_latents) for layer in range(model.n_layers)]
    assert (edited.resid[:, 1, 2] == 0).all()
    torch.testing.assert_close(edited.resid[:, :, :2], plain.resid[:, :, :2])
    assert (edited.logits - plain.logits).abs().max() > 100 * EXACT
