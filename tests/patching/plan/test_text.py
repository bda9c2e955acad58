"""A plan is printed as tables and sentences, or as JSON."""

import json

from tests.support.planning import ROOT

LARGE = (ROOT / "configs/gsm8k_llama1b.toml", "--shape", "llama-3.3-70b")


def test_a_plan_in_json_is_complete_and_divides_flops_by_the_rate_given(codi_plan):
    plan = json.loads(codi_plan(*LARGE, "--pairs", 1000, "--json", "--tflops", 2).stdout)
    assert plan["sweeps"][0]["pairs"] == 1000
    assert plan["model"]["d_model"] == 8192
    assert plan["seconds_at_most"] == plan["cost"]["flops"] / 2e12
    assert any("no CODI checkpoint over it is published" in sentence for sentence in plan["assumptions"])


def test_a_printed_plan_warns_of_large_requests_and_has_seconds_only_at_a_rate(codi_plan):
    text = codi_plan(*LARGE).stdout
    assert "not sent, unless compression brings it below 256 MiB" in text
    assert "seconds" not in text


def test_the_page_on_scaling_shows_what_is_printed_now(codi_plan):
    page = (ROOT / "patching/plan/scaling.md").read_text(encoding="utf-8")
    others = ("--shape", "llama-3.1-8b", "--pairs", 1000, "--shard", "1/8", "--tflops", 100)
    for words in ((*LARGE, "--pairs", 1000), (LARGE[0], *others)):
        tables = codi_plan(*words).stdout.partition("\n\n")[2].partition("\n\nAssumptions:")[0]
        assert tables in page
