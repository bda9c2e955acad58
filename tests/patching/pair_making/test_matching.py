"""A matched donor shares value and answer as its corner says, and the hybrid follows from the host's operations."""

from dataclasses import replace

import pytest

from codi_tracing.patching.pair_making.arithmetic import arithmetic_pool
from codi_tracing.patching.pair_making.matching import (
    MATCH_CORNERS,
    coverage,
    find_matches,
    is_traceable,
    usable_candidates,
)
from codi_tracing.patching.pairs.pair import Side, load_pairs
from codi_tracing.traces.training.word_problems import Story, WordProblem, build_tokenizer
from tests.support.arithmetic import read_back

STORY = Story("Dan", "pens", (4, 2, 0, 1, 3), (1, 0, 0, 1, 0, 1))
HOST = WordProblem((27, 11, 17, 13, 8), "-++-", STORY)


def side(problem: WordProblem) -> Side:
    return Side(problem.question, float(problem.answer), len(problem.values), problem.chain)


def other(numbers: tuple[int, ...], operators: str) -> Side:
    return side(WordProblem(numbers, operators, replace(STORY, name="Ann")))


def short(text: str, *chain: str) -> Side:
    return Side(text, float(chain[-1].partition("=")[2]), chain=chain)


def found(*sides: Side, tokens: int = 40, per_corner: int = 9) -> dict[tuple, float]:
    """The hybrids of all matches, by the question's places and j."""
    given = [(str(place), side) for place, side in enumerate(sides)]
    return {m.pair_id: m.hybrid for m in find_matches(given, [tokens] * len(given), 0, per_corner)}


def counted(sides):
    tokenizer = build_tokenizer()
    return [len(tokenizer(side.question)["input_ids"]) for _, side in sides]


@pytest.fixture(scope="module")
def shipped():
    return [(pair.cluster_id, side) for pair in load_pairs("arithmetic") for side in (pair.clean, pair.corrupted)]


@pytest.fixture(scope="module", params=["shipped", "fresh"])
def pool(request, shipped):
    """Questions, their token counts, and their matches."""
    sides = shipped if request.param == "shipped" else arithmetic_pool(300, seed=0)
    tokens = counted(sides)
    return sides, tokens, find_matches(sides, tokens, seed=0, per_corner=2)


def test_the_hybrid_is_the_hosts_operations_on_the_donors_intermediate():
    assert HOST.chain == ("27-11=16", "16+17=33", "33+13=46", "46-8=38")
    donor = other((25, 5, 9, 6, 7), "-+-+")  # 20, 29, 23, 30
    wide = other((40, 19, 9, 3, 2), "+-+-")  # 59, 50, 53, 51
    hybrids = found(side(HOST), donor, wide)
    assert hybrids["0-0-1"] == 20 + 17 + 13 - 8 == 42
    assert hybrids["0-1-1"] == 29 + 13 - 8 == 34
    assert "0-2-1" not in hybrids  # 23 - 8 = 15, and no answer is below 30
    assert "0-0-1" not in found(side(HOST), donor, other((40, 2, 1, 1, 1), "++++"))  # none reaches 20 + 17 + 13


def test_with_the_same_intermediate_the_host_keeps_its_own_answer():
    same = other((12, 4, 9, 6, 7), "++-+")  # 16, 25, 19, 26
    [match] = [m for m in find_matches([("a", side(HOST)), ("b", same)], [40, 40], 0) if m.pair_id == "0-0-1"]
    assert (match.j, match.same_intermediate, match.same_answer, match.hybrid) == (0, True, False, 38)


def steps_of(question: str) -> tuple[list[int], list[int]]:
    """The results of a question's steps and what each step adds, computed from its English text alone."""
    start, *values = read_back(question)
    return values, [after - before for before, after in zip([start, *values], values, strict=False)]


def test_the_english_text_alone_confirms_every_match(pool):
    for match in pool[2]:
        (mine, changes), (theirs, _) = steps_of(match.host.question), steps_of(match.donor.question)
        assert len(mine) == len(theirs)
        assert match.j < len(mine) - 1, "the answer is no intermediate"
        assert match.same_intermediate == (mine[match.j] == theirs[match.j])
        assert match.same_answer == (mine[-1] == theirs[-1])
        assert match.hybrid == theirs[match.j] + sum(changes[match.j + 1 :])


def test_where_the_intermediate_differs_the_hybrid_is_neither_answer_but_one_that_occurs(pool):
    sides, _, matches = pool
    answers = [side.answer for _, side in sides]
    different = [match for match in matches if not match.same_intermediate]
    assert len(different) > 100
    for match in different:
        assert match.hybrid not in (match.host.answer, match.donor.answer)
        assert min(answers) <= match.hybrid <= max(answers)


def test_host_and_donor_have_equal_token_counts_and_different_clusters(pool):
    sides, tokens, matches = pool
    about = {side.question: (cluster, count) for (cluster, side), count in zip(sides, tokens, strict=True)}
    for match in matches:
        cluster, count = about[match.host.question]
        assert cluster == match.cluster != about[match.donor.question][0]
        assert count == about[match.donor.question][1]


def test_a_pair_id_names_one_match_and_no_corner_has_more_than_asked_for(pool):
    matches = pool[2]
    assert len({match.pair_id for match in matches}) == len(matches)
    of_one = [(m.host.question, m.j, m.same_intermediate, m.same_answer) for m in matches]
    assert max(of_one.count(one) for one in set(of_one)) == 2


def test_a_seed_gives_the_same_matches_again_and_another_seed_others(pool):
    sides, tokens, matches = pool
    assert find_matches(sides, tokens, 0, 2) == matches
    assert find_matches(sides, tokens, 1, 2) != matches


def test_the_draw_of_one_host_does_not_depend_on_the_other_hosts():
    sides = arithmetic_pool(200, seed=0)
    tokens, lone = counted(sides), sides[17][1].question
    chosen = [m for m in find_matches(sides, tokens, 0) if m.host.question == lone]
    # As donors they stay, as hosts they are gone: a question with other tokens finds nobody.
    far = [*sides, *[(f"x{i}", replace(s, question=f"{s.question} ")) for i, (_, s) in enumerate(sides)]]
    again = find_matches(far, [*tokens, *[1000 + count for count in tokens]], 0)
    assert [m for m in again if m.host.question == lone] == chosen


def test_a_corner_without_donor_is_absent_and_counted_as_none(shipped):
    matches = find_matches(shipped, counted(shipped), 0)
    counts = coverage(matches)
    assert sum(counts.values()) == len(matches)
    assert set(counts) == {(j, *corner) for j in range(3) for corner in MATCH_CORNERS}
    assert counts[0, True, True] == 0 < counts[0, False, False]
    assert coverage([]) == {}


def traceable(host: Side) -> list[bool]:
    """For each intermediate of a usable question, whether its uses are unambiguous; nothing if it is unusable."""
    return [is_traceable(q.traced, j) for q in usable_candidates([("a", host)], [9]) for j in range(len(q.results) - 1)]


@pytest.mark.parametrize(
    ("host", "unambiguous"),
    [
        (short("Ann has 27 pens, loses 11, finds 17, finds 13.", "27-11=16", "16+17=33", "33+13=46"), [True, True]),
        # 16 may be the first result or the number of pens that are lost; 33 is the second result alone.
        (short("Ann has 27 pens, loses 11, finds 16, finds 13.", "27-11=16", "16+16=32", "32+13=45"), [False, True]),
        # Both first results are 16.
        (short("Ann has 27 pens, loses 11; Ben has 19, loses 3.", "27-11=16", "19-3=16", "16+16=32"), [False, False]),
        # What follows from the first result may be a number of the question.
        (short("Ann has 27 pens, loses 11, finds 17, finds 33.", "27-11=16", "16+17=33", "33+33=66"), [False, False]),
        # 7 may be the days of a week.
        (short("Ann reads 3 + 4 pages a day, for a week, twice over: 2.", "3+4=7", "7*7=49", "49*2=98"), [False, True]),
        # 1 is the first result, and 0.2 no percentage.
        (short("Ann has 5 pens, loses 4, finds 7, finds 3.", "5-4=1", "1+7=8", "8+3=11"), [True, True]),
        (short("Ann cuts 4 cakes in 20, eats 15, adds 6.", "4/20=0.2", "0.2*15=3", "3+6=9"), [True, True]),
        (short("Ann cuts 4 cakes in 20 %, eats 15, adds 6.", "4/20=0.2", "0.2*15=3", "3+6=9"), [False, True]),
    ],
)
def test_an_intermediate_whose_use_is_ambiguous_is_left_out(host, unambiguous):
    assert traceable(host) == unambiguous
    donors = [short(f"Ben has {n} of 5, 2, 3.", f"{n}+5={n + 5}", f"{n + 5}+2={n + 7}", f"{n + 7}+3={n + 10}")
              for n in range(20, 90)]  # fmt: skip
    hosted = {int(name.split("-")[1]) for name in found(host, *donors) if name.startswith("0-")}
    assert hosted <= {j for j, fine in enumerate(unambiguous) if fine}


@pytest.mark.parametrize(
    "host",
    [
        Side("Ann has 9 pens and finds 4.", 13.0),
        short("Ann has 9 pens, finds 4, loses 2.", "9+4=13", "9-2=7"),  # the first result leads nowhere
        short("Ann has 9 pens, finds 4, loses 2.", "9+4=14", "14-2=12"),
        short("Ann has 9 pens, finds 4, loses 2.", "9+4=13", "13-5=8"),  # 5 comes from nowhere
        Side("Ann has 9 pens, finds 4, loses 2.", 12.0, chain=("9+4=13", "13-2=11")),
    ],
)
def test_a_question_whose_chain_is_broken_is_not_used(host):
    assert not list(usable_candidates([("a", host)], [9]))


def test_a_hybrid_is_whole_where_the_hosts_results_are_and_never_a_division_by_zero():
    host = short("60 nuts, 9 boys, 4 leave. How many each?", "9-4=5", "60/5=12")
    donors = [short(f"{n} cats, 3 come, 2 more come.", f"{n}-3={n - 3}", f"{n - 3}+2={n - 1}") for n in (3, 9, 10, 15)]
    wide = short("Eva has 20 eggs, finds 9, finds 31.", "20+9=29", "29+31=60")
    assert {name: value for name, value in found(host, *donors, wide).items() if name.startswith("0-")} == {
        "0-0-2": 10, "0-0-4": 5
    }  # fmt: skip


def test_an_intermediate_that_does_not_change_the_hosts_answer_has_no_different_donor():
    host = short("Ann has 9 pens, finds 4. She sells all of 6.", "9+4=13", "6-6=0", "13*0=0")
    donor = short("Ben has 8 nuts, finds 3, finds 5, finds 7.", "8+3=11", "11+5=16", "16+7=23")
    wide = short("Eva has 90 nuts, finds 70, finds 50, finds 65.", "90+70=160", "160+50=210", "210+65=275")
    assert {name: value for name, value in found(host, donor, wide).items() if name.startswith("0-")} == {
        "0-1-1": 13 * 16
    }


def test_a_question_that_is_given_twice_counts_once():
    sides = arithmetic_pool(100, seed=3)
    once = find_matches(sides, counted(sides), 0)
    assert find_matches([*sides, *sides], counted(sides) * 2, 0) == once


def test_the_pool_has_as_many_different_questions_as_asked_for_with_chains_of_three_or_four_steps():
    sides = arithmetic_pool(200, seed=5)
    assert len({side.question for _, side in sides}) == 200
    assert {len(side.chain) for _, side in sides} == {3, 4}
    assert arithmetic_pool(200, seed=5) == sides
    assert {len(side.chain) for _, side in arithmetic_pool(20, 5, steps=(2,))} == {2}
    cluster, first = sides[0]
    assert cluster.startswith("".join(step.lstrip("0123456789")[0] for step in first.chain))
