"""A tokenizer under which numbers are several tokens, in each of its usual kinds."""

import pytest

from tests.support.tokenizers import MULTI_TOKEN


@pytest.fixture(params=MULTI_TOKEN)
def multi_token(request):
    return MULTI_TOKEN[request.param]()
