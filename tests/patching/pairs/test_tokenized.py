"""A pair under a tokenizer: the forced tokens and the position where its answers differ."""

from types import SimpleNamespace

from codi_tracing.patching.pairs.tokenized import tokenize_pair
from codi_tracing.traces.model.checkpoint import Card
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


class SpacedTokenizer:
    """Every letter and digit is a token, and the decoded text has a blank after each."""

    eos_token_id, unk_token_id = 1, 2

    def __init__(self, unknown=""):
        self.unknown = unknown

    def __call__(self, text, **_):
        return {"input_ids": [2 if letter in self.unknown else ord(letter) for letter in text]}

    def decode(self, ids, **_):
        return " ".join(map(chr, ids))


def faults(answers, unknown=""):
    encoder = SimpleNamespace(tokenizer=SpacedTokenizer(unknown), card=Card("", 6), n_latents=6, n_positions=10_000)
    return tokenize_pair(encoder, pair(answers=answers)).faults


def test_an_answer_that_the_tokenizer_does_not_give_back_is_a_fault():
    spaced = "its answer 18 is read back as 8 from this checkpoint's tokenizer; drop the pair"
    assert faults((18, 7)) == (spaced,)
    assert faults((7, 18)) == (spaced,)
    assert faults((8, 7)) == ()


def test_an_unknown_word_and_a_key_too_large_are_faults_of_their_own_alone():
    assert [fault[:12] for fault in faults((18, 7), unknown="1")] == ["it has words"]
    (fault,) = faults((1e38, 7))
    assert fault == "its clean answer 1000000000000000000… is too large to be read; drop the pair"


def test_the_shipped_tokenizer_gives_every_answer_back(thought, shipped):
    assert [tokenize_pair(thought, pair).faults for pair in shipped] == [()] * len(shipped)
