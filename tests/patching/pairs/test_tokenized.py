"""A pair under a tokenizer: the forced tokens and the position where its answers differ."""

from codi_tracing.patching.pairs.tokenized import tokenize_pair
from tests.patching.pairs.test_verdicts import pair


def test_a_blank_that_is_a_token_of_its_own_is_no_token_of_the_answer(model, pairs, monkeypatch):
    """As Llama 3 writes " 18": a blank, then the number."""

    def spaced(model, text=""):
        return [1, 2, *([3] if text.startswith(" ") else []), *map(ord, text.strip())]

    monkeypatch.setattr("codi_tracing.traces.loop.tokens.answer_ids", spaced)
    p = tokenize_pair(model, pair(pairs[0].clean.question, pairs[0].corrupted.question, (143, 1430)))
    assert p.forced == (1, 2, 3, *map(ord, "143"))
    assert p.shared == 3
    assert p.tails == ((model.tokenizer.eos_token_id,), (ord("0"), model.tokenizer.eos_token_id))
