"""The verbs on the real model, each as a user starts it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.model


def octavo(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "octavo.cli", *arguments]
    text = {"input": stdin} if stdin is not None else {"stdin": subprocess.DEVNULL}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **text)


def test_run_answers_a_prompt(smollm2_gguf):
    done = octavo(
        "run", str(smollm2_gguf), "What are the three primary colors?", "--temperature", "0", "--max-tokens", "24", "-v"
    )
    assert done.returncode == 0, done.stderr
    assert "Red" in done.stdout
    assert "first token after" in done.stderr


def test_run_completes_piped_text(smollm2_gguf):
    arguments = ["--raw", "-", "--model", str(smollm2_gguf), "--temperature", "0", "--max-tokens", "4"]
    done = octavo("run", *arguments, stdin="The capital of France is")
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout


def test_throughput_writes_what_it_measured(smollm2_gguf, tmp_path):
    file = tmp_path / "result.json"
    line = "--num-prompts 2 --input-len 24 --output-len 6 --max-model-len 1K --json"
    done = octavo("bench", "throughput", str(smollm2_gguf), *line.split(), str(file))
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    assert result["workload"] == "random_24_6_x2"
    assert result["ids_taken_modulo_vocabulary"] is True
    assert result["output_tokens"] == 12
    assert "output tokens/s" in done.stdout
