"""Clusters: connected components of shared questions and declared clusters."""

from codi_tracing.patching.pairs.clusters import joined_clusters
from codi_tracing.patching.pairs.pair import Pair, Side, in_clusters, load_pairs, pairs_from_records
from codi_tracing.patching.pairs.summary import summarise_pairs, summary_rows


def test_pairs_without_anything_in_common_keep_their_clusters():
    assert joined_clusters([("a", ["1", "2"]), ("b", ["3", "4"]), ("a", ["5", "6"])]) == ["a", "b", "a"]


def test_twelve_copies_of_four_pairs_under_new_ids_are_four_clusters():
    four = [(f"first {i}", [f"clean {i}", f"corrupted {i}"]) for i in range(4)]
    copies = [(f"copy {i}", questions) for i, (_, questions) in enumerate(four * 11)]
    assert joined_clusters([*four, *copies]) == [f"first {i}" for i in range(4)] * 12


def test_a_pair_listed_both_ways_round_is_one_cluster_whatever_the_white_space():
    assert joined_clusters([("a", ["How  many?", "Where?"]), ("b", ["Where? ", " How many?"])]) == ["a", "a"]


def test_a_chain_of_shared_questions_and_clusters_is_one_component():
    pairs = [("a", ["1", "2"]), ("b", ["2", "3"]), ("b", ["4", "5"]), ("c", ["5", "6"]), ("d", ["7", "8"])]
    assert joined_clusters(pairs) == ["a", "a", "a", "a", "d"]
    assert len(set(joined_clusters(pairs[::-1]))) == 2


def test_joining_is_idempotent_and_a_file_is_joined_when_it_is_read():
    records = [
        {"pair_id": i, "cluster_id": f"c{i}", "clean": {"question": one, "answer": 1},
         "corrupted": {"question": two, "answer": 2}}
        for i, (one, two) in enumerate([("a", "b"), ("c", "d"), ("b", "a")])
    ]  # fmt: skip
    pairs = pairs_from_records(records)
    assert [pair.cluster_id for pair in pairs] == ["c0", "c1", "c0"]
    assert in_clusters(pairs) == pairs


def test_a_summary_says_how_many_pairs_share_a_question():
    pairs = [
        Pair(i, str(i), Side(one, 1.0), Side(two, 2.0))
        for i, (one, two) in enumerate([("a", "b"), ("c", "d"), ("b", "a")])
    ]
    summary = summarise_pairs(in_clusters(pairs))
    assert (summary["clusters"], summary["shared_questions"]) == (2, [0, 2])
    assert ["shared questions", "2 pairs: 0, 2, in one cluster with each other"] in summary_rows(summary)
    assert summarise_pairs(load_pairs("arithmetic"))["clusters"] == 65
