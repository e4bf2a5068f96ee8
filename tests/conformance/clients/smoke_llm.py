"""The `llm` command, with the server as one of its extra OpenAI models."""

from __future__ import annotations

import json
import os
from pathlib import Path

from click.testing import CliRunner
from llm.cli import cli
from target import BASE_URL, MODEL, QUESTION

ENTRY = f"- model_id: octavo\n  model_name: {MODEL}\n  api_base: {BASE_URL}\n  supports_schema: true\n"


def ask(*arguments: str) -> str:
    Path(os.environ["LLM_USER_PATH"], "extra-openai-models.yaml").write_text(ENTRY)
    done = CliRunner().invoke(cli, ["-m", "octavo", "-o", "temperature", "0", "--key", "none", *arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_a_prompt_is_answered_streamed_and_whole() -> None:
    streamed = ask(QUESTION, "-o", "max_tokens", "24")
    assert "red" in streamed.lower()
    assert ask(QUESTION, "-o", "max_tokens", "24", "--no-stream") == streamed


def test_a_schema_is_kept() -> None:
    schema = {"type": "object", "properties": {"warm": {"type": "boolean"}}, "required": ["warm"]}
    closed = json.dumps({**schema, "additionalProperties": False})  # an open one lets the model go on with more
    answer = json.loads(ask("--schema", closed, "Is the sun warm?"))
    assert list(answer) == ["warm"] and isinstance(answer["warm"], bool)
