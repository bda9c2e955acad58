"""Calibration by simulation: coverage of every kind of interval, family-wise errors under each null, rank sets.

The slow tests draw enough for 0.92 to mean something and print their table; `make calibration` runs them with it.
"""

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from codi_tracing.analysis.statistics.inference import (
    cluster_share_intervals,
    difference_intervals,
    rank_sets,
    ratio_intervals,
    sign_flip_p,
)
from codi_tracing.analysis.statistics.results import Results
from codi_tracing.analysis.statistics.sites import critical
from codi_tracing.analysis.statistics.verdict import Closed
from tests.support.tables import outcomes

CLUSTERS = (8, 10, 15, 30, 65)
DRAWS, LEAST = 4_000, 0.92
SITES = 24
Null = Callable[[np.random.Generator, int], np.ndarray]


def all_or_nothing(rng: np.random.Generator, shape: tuple[int, int], p: float) -> np.ndarray:
    return (rng.random(shape) < p).astype(float)


def shares(rng, clusters: int) -> Iterator[tuple[str, np.ndarray, np.ndarray, float]]:
    """Kinds of data, sums and sizes `[draw, cluster]`, and the true share."""
    shape = (DRAWS, clusters)
    sizes = rng.integers(1, 8, shape).astype(float)
    for p in (0.02, 0.1, 0.5, 0.9):
        hits = all_or_nothing(rng, shape, p)
        yield f"share {p}", hits, np.ones(shape), p
        yield f"share {p}, unequal clusters", hits * sizes, sizes, p
        yield f"share {p}, independent in clusters", rng.binomial(sizes.astype(int), p).astype(float), sizes, p


def ratios(rng, clusters: int) -> Iterator[tuple[str, np.ndarray, np.ndarray, float]]:
    """The same of pooled ratios: normal, heavy-tailed, unequal clusters, all or nothing, and differences of these."""
    shape, ones = (DRAWS, clusters), np.ones((DRAWS, clusters))
    gaps, sizes = rng.uniform(0.5, 1, shape), rng.integers(1, 8, shape).astype(float)
    yield "normal", 0.4 * gaps + 0.2 * rng.standard_normal(shape), gaps, 0.4
    yield "t(2)", 0.4 * gaps + 0.2 * rng.standard_t(2, shape), gaps, 0.4
    yield "unequal clusters", sizes * (0.4 + 0.2 * rng.standard_normal(shape)), sizes, 0.4
    yield "U-shaped", rng.beta(0.1, 0.4, shape), ones, 0.2
    for p in (0.02, 0.1, 0.5, 0.9):
        yield f"all or nothing {p}", all_or_nothing(rng, shape, p), ones, p
        yield f"all or nothing {p}, unequal", all_or_nothing(rng, shape, p) * sizes, sizes, p
    for p, control in ((0.02, 0.02), (0.1, 0.02), (0.5, 0.02), (0.98, 0.0)):
        transferred = all_or_nothing(rng, shape, p) - all_or_nothing(rng, shape, control)
        yield f"specific transfer {p} − {control}", transferred, ones, p - control


def covered(low: np.ndarray, high: np.ndarray, truth: float) -> float:
    return float(((low <= truth) & (truth <= high)).mean())


@pytest.mark.parametrize("clusters", CLUSTERS)
def test_every_kind_of_interval_covers_the_truth(clusters):
    rng = np.random.default_rng(clusters)
    found = {name: covered(*cluster_share_intervals(sums, sizes), p) for name, sums, sizes, p in shares(rng, clusters)}
    found |= {name: covered(*ratio_intervals(above, below), t) for name, above, below, t in ratios(rng, clusters)}
    ones, shape = np.ones((DRAWS, clusters)), (DRAWS, clusters)
    first, second = all_or_nothing(rng, shape, 0.9), all_or_nothing(rng, shape, 0.7)
    found["difference of two ratios"] = covered(*difference_intervals(first, ones, second, ones), 0.2)
    print(f"\n{clusters} clusters: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items()))
    assert {name: value for name, value in found.items() if value < LEAST} == {}


# The nulls: differences of partner and control by cluster and site, `[cluster, site]`, in units of transfer.
def two_unrelated_donors(rng: np.random.Generator, clusters: int) -> np.ndarray:
    """Both writes are from unrelated runs, labelled at random: symmetric, heavy tails, alike across sites."""
    shared = rng.standard_t(3, size=(clusters, 1))
    return 0.1 * (shared + 0.5 * rng.standard_t(3, size=(clusters, SITES)))


def destruction(options: int) -> Null:
    """Every write resets the answer to one of `options`, alike for partner and control; sites agree half the time."""

    def draw(rng: np.random.Generator, clusters: int) -> np.ndarray:
        common, own = rng.integers(options, size=(2, clusters, 1)), rng.integers(options, size=(2, clusters, SITES))
        partner, control = np.where(rng.random((2, clusters, SITES)) < 0.5, common, own) == 0
        return partner.astype(float) - control

    return draw


def noise_against_a_donor(rng: np.random.Generator, clusters: int) -> np.ndarray:
    """Both writes leave the partner's answer a small probability, of different spread: the mean difference is 0."""
    return rng.beta(0.05, 2.0, size=(clusters, SITES)) - rng.beta(0.5, 20.0, size=(clusters, SITES))


NULLS: dict[str, Null] = {
    "two unrelated donors": two_unrelated_donors,
    **{f"reset to uniform over {k}": destruction(k) for k in (2, 5, 10)},
    "noise as long as the partner's write": noise_against_a_donor,
}


def discoveries(null: Null, clusters: int, sweeps: int) -> float:
    """The share of sweeps with any site above its control at a family-wise p of 0.05."""
    found = 0
    for seed in range(sweeps):
        sums = null(np.random.default_rng([clusters, seed]), clusters)
        family, _ = sign_flip_p(sums, 1.0, draws=1_000, seed=seed)
        found += bool(((family <= 0.05) & (sums.mean(0) > 0)).any())
    return found / sweeps


@pytest.mark.parametrize("null", NULLS)
@pytest.mark.parametrize("clusters", [8, 30])
def test_where_nothing_is_carried_a_critical_site_is_found_in_at_most_one_sweep_of_twenty(null, clusters):
    sweeps = 200
    assert discoveries(NULLS[null], clusters, sweeps) <= stats.binom.ppf(0.9995, sweeps, 0.05) / sweeps


@pytest.mark.slow
@pytest.mark.parametrize("null", NULLS)
def test_family_wise_errors_are_at_most_a_twentieth_from_8_to_65_clusters(null):
    sweeps = 2_000
    found = {clusters: discoveries(NULLS[null], clusters, sweeps) for clusters in CLUSTERS}
    print(f"\n{null}: " + ", ".join(f"{clusters} clusters {value:.3f}" for clusters, value in found.items()))
    assert max(found.values()) <= stats.binom.ppf(0.9995, sweeps, 0.05) / sweeps


def rank_coverage(clusters: int, sweeps: int, true: np.ndarray) -> float:
    """The share of sweeps in which every site's set holds its true rank (of equal sites, any of theirs)."""
    best, worst = (true[None] > true[:, None]).sum(1) + 1, (true[None] >= true[:, None]).sum(1)
    covered = 0
    for seed in range(sweeps):
        rng = np.random.default_rng([clusters, seed])
        values = all_or_nothing(rng, (clusters, len(true)), true) - all_or_nothing(rng, (clusters, len(true)), 0.02)
        low, high = rank_sets(values, draws=1_000, seed=seed)
        covered += bool(((low <= best) & (high >= worst)).all())
    return covered / sweeps


TRUE = np.array([0.73, 0.73, 0.6, 0.56, 0.56, 0.26, 0.15, 0.06, 0.0, 0.0])


@pytest.mark.parametrize("clusters", [8, 30])
def test_rank_sets_hold_the_true_ranks_of_all_sites_at_once(clusters):
    assert rank_coverage(clusters, 200, TRUE) >= stats.binom.ppf(0.0005, 200, 0.95) / 200


@pytest.mark.slow
def test_rank_sets_cover_from_8_to_65_clusters():
    found = {clusters: rank_coverage(clusters, 1_000, TRUE) for clusters in CLUSTERS}
    print("\nrank sets: " + ", ".join(f"{clusters} clusters {value:.3f}" for clusters, value in found.items()))
    assert min(found.values()) >= stats.binom.ppf(0.0005, 1_000, 0.95) / 1_000


@pytest.fixture(scope="module")
def swept():
    """A real sweep of `thought`: two unrelated donors, noise and the partner, every layer × step, 24 pairs."""
    from codi_tracing.patching.engine.sweep import sweep
    from codi_tracing.patching.interventions.sites import THOUGHT, sitewise
    from codi_tracing.patching.interventions.sources import noise, other, unrelated
    from codi_tracing.patching.pairs.pair import load_pairs
    from codi_tracing.traces.model.loading import load_codi

    model, pairs = load_codi("thought", device="cpu"), load_pairs("arithmetic")[:24]
    whole = sweep(model, pairs, sites=[THOUGHT], sources=[other, unrelated], directions=["denoising"], draws=2)
    parts = [sweep(model, pairs, sites=sitewise(model), sources=[unrelated, noise], directions=["denoising"], draws=2)]
    return pd.concat([whole, *parts], ignore_index=True)


def relabelled(table: pd.DataFrame, chosen: pd.Series) -> pd.DataFrame:
    """The table with some of its single sites' rows labelled as if they were the partner's."""
    sites = table["kind"] != "thought"
    kept = table[~sites | chosen | ((table["source"] == "unrelated") & (table["draw"] == 1))]
    partner = kept.index.isin(table.index[sites & chosen])
    return kept.assign(source=kept["source"].mask(partner, "clean"), draw=kept["draw"].mask(partner))


def test_noise_as_long_as_the_partners_write_is_not_called_critical(swept):
    table = relabelled(swept, (swept["source"] == "noise") & (swept["draw"] == 0))
    found = critical(table)
    assert len(found) == 24
    assert found["specific"].all()
    assert not found["critical"].any()
    assert found["plain"].abs().max() < 0.1
    assert found["another"].max() > 0.5  # it destroys answers, and brings none


def test_a_second_unrelated_donor_in_place_of_the_partner_is_not_called_critical(swept):
    table = relabelled(swept, (swept["source"] == "unrelated") & (swept["draw"] == 0))
    found = critical(table)
    assert len(found) == 24
    assert not found["critical"].any()
    assert found["p_fwer"].min() > 0.05


@pytest.mark.parametrize("options", [2, 5, 10])
def test_where_every_write_resets_the_answer_to_one_of_k_nothing_is_carried(options):
    """At the level of tables: partner, control and noise give the partner's answer in 1/k, by chance."""
    rng = np.random.default_rng(options)
    written = [(layer, source) for layer in (None, 0, 1, 2) for source in ("other", "unrelated", "noise")]
    table = outcomes({write: rng.choice(["p", *"o" * (options - 1)], 60) for write in written})
    closed = Closed(options, 0.6)
    found = Results(table, closed=closed)
    assert found.verdict.label not in ("carried", "partly carried", "one direction only")
    assert not found.sites()["critical"].any()
    assert found.largest.site is None
