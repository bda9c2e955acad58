"""The curriculum of the training batches."""

from codi_tracing.traces.training.batches import longest_chain


def test_the_curriculum_lengthens_chains():
    assert [longest_chain(progress, 0.2) for progress in (0, 0.05, 0.15, 0.25, 1)] == [2, 2, 3, 4, 4]
    assert longest_chain(0, 0) == 4
