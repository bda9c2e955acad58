"""A pair under a tokenizer: the forced tokens and the position where its answers differ."""

from types import SimpleNamespace

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

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


def spaced_tokenizer(unknown=""):
    """Every letter and digit is a token; without a decoder, the decoded text has a blank after each."""
    letters = sorted({*map(chr, range(33, 127))} - {*unknown})
    backend = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(["<e>", "?", *letters])}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("."), "isolated")]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<e>", unk_token="?")


def faults(answers, unknown=""):
    encoder = SimpleNamespace(tokenizer=spaced_tokenizer(unknown), card=Card("", 6), n_latents=6, n_positions=10_000)
    return tokenize_pair(encoder, pair(answers=answers)).faults


def test_an_answer_that_the_tokenizer_does_not_give_back_is_a_fault():
    spaced = "its answer 18 is read back as 8 from this checkpoint's tokenizer; drop the pair"
    assert faults((18, 7)) == (spaced,)
    assert faults((7, 18)) == (spaced,)
    assert faults((8, 7)) == ()


def test_an_unknown_word_and_a_key_too_large_are_faults_of_their_own_alone():
    assert faults((18, 7), unknown="1") == ("this checkpoint's tokenizer does not know its '1'",)
    (fault,) = faults((1e38, 7))
    assert fault == "its clean answer 1000000000000000000… is too large to be read; drop the pair"


def test_the_shipped_tokenizer_gives_every_answer_back(thought, shipped):
    assert [tokenize_pair(thought, pair).faults for pair in shipped] == [()] * len(shipped)
