"""The default model behind the real command, asked with the real client."""

from __future__ import annotations

import re
import signal
import subprocess
import sys

import openai
import psutil
import pytest

MAX_RESIDENT = 1 << 30


@pytest.mark.model
def test_the_default_model_answers_over_http(smollm2_gguf):
    process = subprocess.Popen(
        [sys.executable, "-m", "octavo.cli", "serve", str(smollm2_gguf), "--port", "0", "--max-model-len", "2048"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"ready after.*(http://127\.0\.0\.1:\d+)/v1", line):
                break
        else:
            pytest.fail("".join(lines))
        with openai.OpenAI(base_url=found[1] + "/v1", api_key="none", max_retries=0) as client:
            model = client.models.list().data[0].id
            question = [{"role": "user", "content": "What are the three primary colors?"}]
            options = {"model": model, "messages": question, "max_tokens": 24, "temperature": 0}
            whole = client.chat.completions.create(**options)
            assert "Red" in whole.choices[0].message.content
            chunks = client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
            *texts, last = chunks
            assert "".join(c.choices[0].delta.content or "" for c in texts) == whole.choices[0].message.content
            assert last.usage.completion_tokens == whole.usage.completion_tokens
            assert last.usage.prompt_tokens_details.cached_tokens > 0
            text = client.completions.create(model=model, prompt="1, 2, 3, 4,", max_tokens=4, temperature=0, logprobs=2)
            assert text.choices[0].text.startswith(" 5") and len(text.choices[0].logprobs.tokens) == 4
            with pytest.raises(openai.BadRequestError) as refused:
                client.completions.create(model=model, prompt="long " * 3000)
            assert refused.value.code == "context_length_exceeded"
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children()]
        assert len(family) == 2 and sum(one.memory_info().rss for one in family) < MAX_RESIDENT
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.communicate()
