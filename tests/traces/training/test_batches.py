"""Training batches: any tokenizer's answer is found by its characters; the shipped recipe's batches are pinned."""

import hashlib

import pytest
from transformers import AutoTokenizer

from codi_tracing.traces.training.batches import IGNORED, BatchSampler, longest_chain, write_answer
from codi_tracing.traces.training.word_problems import draw_problems, results
from tests.support.places import ROOT

# The first 16 digits of SHA-256 over each tensor's int64, as of the batches on which the shipped models were trained.
SHIPPED = {
    "question": "706a7c5a1f8b45fe", "question_mask": "017ee0edbdd2ffa3", "answer": "3cc790cd25f3c00e",
    "teacher": "481f6b3d9cd19224", "teacher_mask": "f45d04cdfc491ac4", "teacher_labels": "5c365c5e7781c935",
    "teacher_colon": "67f8f3d775160bb4", "steps": "356796789da6de8c",
}  # fmt: skip


def test_the_curriculum_lengthens_chains():
    assert [longest_chain(progress, 0.2) for progress in (0, 0.05, 0.15, 0.25, 1)] == [2, 2, 3, 4, 4]
    assert longest_chain(0, 0) == 4


def test_the_shipped_recipes_batches_are_what_they_were():
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "traces" / "embedded" / "base")
    batch = BatchSampler(tokenizer, 6, seed=1, terse=0.5).batch(16)
    digests = {name: hashlib.sha256(getattr(batch, name).numpy().tobytes()).hexdigest() for name in SHIPPED}
    assert {name: digest[:16] for name, digest in digests.items()} == SHIPPED
    assert batch.answer_labels[:, 1:].equal(batch.answer[:, 1:])
    assert batch.answer_colon.tolist() == [batch.answer.shape[1] - 3] * 16


def test_teacher_and_student_are_distilled_at_the_colon_and_answer_the_number_after_it(multi_token):
    problems = draw_problems(4, 32)
    batch = BatchSampler(multi_token, 6, seed=0).encode(problems)
    lengths = {len(multi_token(f" {p.answer}", add_special_tokens=False)["input_ids"]) for p in problems}
    assert len(lengths) > 1  # so that the answers are padded
    both = [(batch.answer, batch.answer_labels, batch.answer_colon)]
    both.append((batch.teacher, batch.teacher_labels, batch.teacher_colon))
    for ids, labels, colons in both:
        for row, p in enumerate(problems):
            colon, told = int(colons[row]), labels[row][labels[row] != IGNORED].tolist()
            assert multi_token.decode(ids[row, colon]).strip() == ":"
            number = [token for token in labels[row, colon + 1 :].tolist() if token != IGNORED]
            assert number[-1] == multi_token.eos_token_id
            assert multi_token.decode(number[:-1]).replace(" ", "") == str(p.answer)
            assert told[-len(number) :] == number  # padding has no label


def test_a_steps_target_is_the_first_token_with_a_digit_of_its_result(multi_token):
    problems = draw_problems(4, 32)
    batch = BatchSampler(multi_token, 6, seed=0).encode(problems)
    for p, targets in zip(problems, batch.steps.tolist(), strict=True):
        told = results(p)
        for number, target in zip(told, targets, strict=False):
            text = multi_token.decode([target]).strip()
            assert text
            assert str(number).startswith(text)
        assert targets[len(told) :] == [multi_token.eos_token_id] * (6 - len(told))


def test_a_seed_draws_the_same_batches_again(multi_token):
    first, second = (BatchSampler(multi_token, 6, seed=3, terse=0.5).batch(8) for _ in range(2))
    assert first.teacher.equal(second.teacher)


class Merging:
    """A tokenizer that writes `: 18` as one token."""

    def __call__(self, text, **_):
        return {"input_ids": [1, 2], "offset_mapping": [(0, 13), (13, len(text))]}

    def convert_ids_to_tokens(self, _):
        return ":▁18"


def test_a_tokenizer_without_a_token_before_the_number_is_refused():
    with pytest.raises(ValueError, match="writes the end of 'The answer is:' and the number as one token, ':▁18'"):
        write_answer(Merging(), 18)
