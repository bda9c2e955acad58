"""Published dumps of decoded latents: read, refused, and scored as our own lens is."""

import pandas as pd
import pytest

from codi_tracing.analysis.lens.statistics import decodable, match_tokens, number_first
from codi_tracing.patching.lens.dump import DumpError, dump_tables, read_dump
from tests.support.dumps import DUMP


@pytest.fixture
def dump(tmp_path):
    path = tmp_path / "decoded_latent.txt"
    path.write_text(DUMP, encoding="utf-8")
    return path


def test_a_dump_holds_solutions_and_the_likeliest_tokens_of_bot_and_every_step(dump):
    questions, decoded = read_dump(dump)
    assert [(q.question_id, q.intermediates, q.answer, q.steps) for q in questions] == [
        ("0", (9.0,), 18.0, 2),
        ("4", (60.0, 15.0), 16.0, 3),
    ]
    assert questions[0].question.startswith("A hen lays 16 eggs...\nShe eats")
    assert len(decoded) == 2 * 3 * 5
    assert (decoded[0].step, decoded[0].rank, decoded[0].token) == (-1, 1, " 13")
    assert decoded[7].token == "\n"


def test_a_numbers_rank_is_that_of_its_first_equal_token(dump):
    says, values = dump_tables(*read_dump(dump))
    found = match_tokens(says, values[values["owner"] == "own"])
    ranks = found.dropna(subset="rank").set_index(["question_id", "value", "step"])["rank"].to_dict()
    assert ranks == {("0", 9.0, 1): 1, ("4", 60.0, -1): 1}


def test_a_question_counts_where_all_its_intermediates_are_decoded(dump):
    says, values = dump_tables(*read_dump(dump))
    shares = decodable(match_tokens(says, values)).set_index(["measure", "owner", "steps"])["share"].to_dict()
    assert shares == {
        ("all of them", "own", 2): 1.0, ("all of them", "own", 3): 0.0,
        ("each of them", "own", 2): 1.0, ("each of them", "own", 3): 0.5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "holds no decoded latents"),
        ("Question0...\nHow?...\nCoT=<<1+1=2>>, Answer=2.0\n", "holds no decoded latents"),
        (DUMP.replace("Question4", "Question0"), "question 0 occurs 2 times"),
        (DUMP.replace("[' 9', '9'", "[' 9', 9"), "question 0: found .* expected a line as"),
        (DUMP.replace("[' 9', '9'", "[' 9', __import__('os')"), "question 0: found .* expected a line as"),
        (DUMP.replace("[' 9', '9'", "' 9', '9'"), "question 0: found .* expected a line as"),
        (DUMP.replace("[' 9', '9'", "['\\ud800', '9'"), "question 0: found .* expected a line as"),
        (DUMP.replace("2th latent (top5): [' 9'", "1th latent (top5): [' 9'"), "question 0: latent 1 occurs twice"),
        (DUMP.replace("decoded 2th", "decoded -2th"), "question 0: found .* expected a line as"),
        (DUMP.replace("CoT=<<16-3-4=9>> <<9*2=18>>, Answer=18.0\n", ""), "question 0 has no line 'CoT=…, Answer=…'"),
        (DUMP.replace("CoT=<<2*30", "CoT-<<2*30"), "question 4 has no line 'CoT=…, Answer=…'"),
        (DUMP.replace("[' 14', 'fifteen', ' 9', '1', '5']", "[]"), "question 4: found .* expected a line as"),
    ],
)
def test_any_other_text_is_refused_in_a_sentence(dump, content, sentence):
    dump.write_text(content, encoding="utf-8")
    with pytest.raises(DumpError, match=sentence):
        read_dump(dump)


def test_a_folder_and_a_file_of_other_bytes_are_refused(tmp_path):
    with pytest.raises(DumpError, match="is a folder"):
        read_dump(tmp_path)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DumpError, match="is not UTF-8"):
        read_dump(tmp_path / "bytes")


def test_digits_of_other_scripts_are_no_numbers():
    says = pd.DataFrame({"question_id": "a", "step": 0, "layer": 0, "rank": [1, 2], "token": ["７", "7"]})
    found = match_tokens(says, pd.DataFrame({"question_id": ["a"], "value": [7.0]}))
    assert found["rank"].tolist() == [2]


def test_the_share_of_latents_whose_likeliest_token_is_a_number_is_counted_by_step(dump):
    says, _ = dump_tables(*read_dump(dump))
    assert number_first(says).to_dict() == {-1: 1.0, 0: 0.0, 1: 1.0}
    words = says.assign(token=says["token"].mask((says["question_id"] == "4") & (says["rank"] == 1), " twelve"))
    assert number_first(words).to_dict() == {-1: 0.5, 0: 0.0, 1: 0.5}
