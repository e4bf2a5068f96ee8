"""lm-eval's `local-completions`, with the server's own tokenizer, on tasks that are here."""

from __future__ import annotations

import json

import pytest

from tests.conformance.environment import PROGRAMS


@pytest.mark.model
def test_lm_eval_measures_the_model_through_the_server(server, clients, tmp_path):
    done = clients.run("lm_eval_run.py", str(tmp_path / "tasks"), cwd=PROGRAMS, OCTAVO_URL=server)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["results"]["octavo_choices"]["acc,none"] == 1.0, found
    assert found["results"]["octavo_series"]["exact_match,stripped"] == 1.0, found
    for scores in found["loglikelihoods"]:
        best, second, _ = sorted(scores, reverse=True)
        assert second + 1 < best < 0
