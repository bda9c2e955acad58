"""A submitted job is recorded at once, submitted once, and reported by its state."""

import json

import pytest

from codi_tracing.traces.remote.submitted_jobs import Ledger


def test_a_job_is_sent_once_and_its_id_survives_the_process(tmp_path):
    path, sent = tmp_path / "jobs.json", []

    def send():
        sent.append(f"id-{len(sent)}")
        return sent[-1]

    ledger = Ledger(path, sending=True)
    ledger.begin("00-00000")
    assert [ledger.submitted(ledger.next(), send) for _ in range(2)] == ["id-0", "id-1"]
    assert [job for job, _ in json.loads(path.read_text()).values()] == ["id-0", "id-1"]
    again = Ledger(path, sending=True)
    again.begin("00-00000")
    assert again.submitted(again.next(), send) == "id-0"
    assert len(sent) == 2


def test_collecting_sends_nothing(tmp_path):
    ledger = Ledger(tmp_path / "jobs.json", sending=False)
    ledger.begin("00-00000")
    assert ledger.submitted(ledger.next(), lambda: pytest.fail("was sent")) is None


def test_a_failed_job_is_submitted_again_the_next_time(tmp_path):
    ledger = Ledger(tmp_path / "jobs.json", sending=True)
    ledger.submitted("a", lambda: "first")
    ledger.forget("a")
    again = Ledger(tmp_path / "jobs.json", sending=True)  # another process, which knows the file alone
    assert again.submitted("a", lambda: "second") == "second"


def test_a_job_is_lost_after_the_ledgers_patience(tmp_path):
    for patience, lost in ((3600.0, False), (-1.0, True)):
        ledger = Ledger(tmp_path / "jobs.json", sending=True, patience=patience)
        ledger.submitted("a", lambda: "id")
        assert ledger.is_lost("a") is lost
        assert not ledger.is_lost("never sent")


def test_pending_jobs_are_counted_by_state(tmp_path):
    ledger = Ledger(tmp_path / "jobs.json", sending=False, pending={"a": "QUEUED", "b": "RUNNING", "c": "QUEUED"})
    assert ledger.sentence() == "3 jobs are not finished (2 queued, 1 running); collect them later: codi remote collect"


@pytest.mark.parametrize("content", ["{half", "[]", '{"a": "id"}', '{"a": ["id", "yesterday"]}'])
def test_a_damaged_list_of_jobs_is_refused(tmp_path, content):
    (tmp_path / "jobs.json").write_text(content)
    with pytest.raises(ValueError, match="is not whole JSON; delete it, and submit again"):
        Ledger(tmp_path / "jobs.json", sending=True)
