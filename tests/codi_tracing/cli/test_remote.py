"""codi remote submit, collect: what is to be typed next names the same run."""

import shlex
from pathlib import Path

import pytest

from codi_tracing.traces.remote.submitted_jobs import JobsPending
from tests.support.command_line import refused


@pytest.mark.parametrize("out", [(), ("--out", "runs/my run")])
def test_the_command_that_collects_a_runs_jobs_is_printed_with_its_folder(codi, config, monkeypatch, out):
    calls = []

    def pending(settings, folder, later, force):
        calls.append((later, folder.resolve()))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "jobs.json").write_text("{}")
        raise JobsPending("1 jobs are not finished (1 queued); collect them later: codi remote collect")

    monkeypatch.setattr("codi_tracing.patching.runs.experiment.run_experiment", pending)
    monkeypatch.setenv("NDIF_API_KEY", "key")
    assert refused(codi("remote", "collect", config(), *out)).endswith(shlex.join(["remote", "submit", config(), *out]))
    submitted = codi("remote", "submit", config(), *out)
    assert submitted.exit_code == 0, submitted.output
    collect = shlex.split(submitted.stdout.partition("collect them later: ")[2])
    assert codi(*collect[1:]).exit_code == 0
    folder = Path(out[1] if out else "runs/a").resolve()
    assert calls == [("submit", folder), ("collect", folder)]
