"""The vocabulary agrees with the code: every name is computed, drawn or run by the module that owns it."""

import doctest

from codi_tracing.analysis.table import SCHEMA
from codi_tracing.configs import vocabulary
from codi_tracing.configs.load import load_config, shipped_configs
from codi_tracing.configs.schema import RECORDS, RunConfig
from codi_tracing.patching import metrics
from codi_tracing.patching.interventions import sites, sources
from codi_tracing.patching.runs.recipes import RECIPES


def test_the_example_in_the_docstring_holds():
    assert doctest.testmod(vocabulary).failed == 0


def test_every_metric_is_computed_and_every_computed_metric_has_words():
    estimate = {"logit_difference_estimate"}
    assert set(vocabulary.METRICS) == {*metrics.METRIC_NAMES, *metrics.STEP_METRICS} | estimate
    at_eot = {name for name, metric in vocabulary.METRICS.items() if metric.read_at == "EoT"}
    assert at_eot == set(metrics.EOT_METRICS) == {name for name in metrics.METRIC_NAMES if name.endswith("_at_eot")}


def test_every_site_kind_of_a_table_has_a_noun_and_every_grid_makes_sites():
    assert list(SCHEMA.columns["kind"].checks[0].statistics["allowed_values"]) == list(vocabulary.SITE_KINDS)
    assert all(kind.noun and kind.meaning for kind in vocabulary.SITE_KINDS.values())
    assert len({kind.noun for kind in vocabulary.SITE_KINDS.values()}) == len(vocabulary.SITE_KINDS)
    assert set(sites.GRID_SITES) == set(vocabulary.GRIDS)


def test_a_sources_name_in_the_table_is_in_the_vocabulary():
    assert set(sources.NAMED_SOURCES) == set(vocabulary.CONFIG_SOURCES)
    for direction in vocabulary.DIRECTIONS.values():
        for source in (*sources.NAMED_SOURCES.values(), sources.itself):
            assert sources.source_name(source, direction.host) in vocabulary.TABLE_SOURCES
        assert sources.other(direction.host) == direction.partner
    computed = {name for name, source in sources.NAMED_SOURCES.items() if isinstance(source, sources.Value)}
    assert computed == {name for name, source in vocabulary.SOURCES.items() if source.computed}


def test_the_partner_of_one_direction_is_the_host_of_the_other():
    denoising, noising = vocabulary.DIRECTIONS.values()
    assert (denoising.host, denoising.partner) == (noising.partner, noising.host)


def test_every_experiment_has_a_recipe_a_record_and_a_shipped_config_of_its_name():
    assert list(RECIPES) == list(RECORDS) == list(vocabulary.EXPERIMENTS)
    shipped = {
        name: load_config(path, RunConfig).experiment
        for name, path in shipped_configs().items()
        if "train_" not in name
    }
    assert set(vocabulary.SWEEPS) <= {name for name, experiment in shipped.items() if experiment == "sweep"}
    others = [name for name in vocabulary.EXPERIMENTS if name != "sweep"]
    assert [shipped[name] for name in others] == others


def test_no_name_of_the_vocabulary_has_two_meanings():
    kinds = (
        vocabulary.SITE_KINDS, vocabulary.GRIDS, vocabulary.DIRECTIONS, vocabulary.SOURCES, vocabulary.FREEZABLE,
        vocabulary.METRICS, vocabulary.PROTOCOLS, vocabulary.EXPERIMENTS, vocabulary.SWEEPS,
    )  # fmt: skip
    repeated = {name for names in kinds for name in names if sum(name in other for other in kinds) > 1}
    assert repeated == {"layerwise", "stepwise", "sitewise"}  # a grid, and the shipped sweep of that grid
