"""A training's config: of a base, or of a CODI model over one; other combinations are refused."""

import re

import pytest

from codi_tracing.configs.load import ConfigError
from codi_tracing.configs.train_schema import TrainConfig
from tests.configs.conftest import RUN

CODI = 'out = "a"\nbase = "b"\n[codi]\n[optimiser]\nsteps = 1\nbatch = 1\nlr = 1e-3\n'


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (CODI.replace("[codi]", "[codi]\nrnk = 3"), "unknown key 'codi.rnk', the nearest known key is 'codi.rank'"),
        (CODI.replace('base = "b"\n', ""), "needs a base to train over"),
        (CODI.replace("[codi]", "[architecture]"), "trains a new base, so base has no meaning"),
        (CODI.replace("[codi]\n", ""), "found neither of [architecture] and [codi]"),
        (CODI.replace("[codi]", "[architecture]\n[codi]"), "found both of [architecture] and [codi]"),
        (CODI.replace("[codi]", "[codi]\nhide_question = 1.5"), "'codi.hide_question' is 1.5, expected 1.0 or less"),
        (CODI.replace("1e-3", "nan"), "'optimiser.lr' is nan"),
        (CODI.replace("[codi]", "[architecture]\nheads = 3"), "d_model is 64 with 3 heads, expected a multiple of 6"),
        (CODI.replace("[codi]", "[architecture]\nkv_heads = 3"), "heads is 4, expected a multiple of kv_heads"),
        (RUN, "is a config for `codi run`, expected one for `codi train`"),
    ],
)
def test_a_training_without_meaning_is_refused(load, text, problem):
    with pytest.raises(ConfigError, match=re.escape(problem)):
        load(text, TrainConfig)
