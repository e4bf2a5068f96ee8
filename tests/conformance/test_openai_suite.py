"""The `openai` package's own tests, from its source distribution, through its TEST_API_BASE_URL."""

from __future__ import annotations

import pytest

from tests.conformance.environment import unexpected

MODULES = ["test_models.py", "test_completions.py", "test_embeddings.py", "chat/test_completions.py"]

BODY = "its body is for a mock that reads nothing: a logit_bias for the token 'foo', best_of 0, audio, a web search"
STORED = "reads, changes or deletes stored chats; Octavo stores none"
DELETED = "deletes a model; those that Octavo serves are fixed at its start"
BASE64 = "asks for base64, the package's default, and reads it as what it is not: a list of floats"

NOT_OURS = {
    **{f"api_resources.test_models.Test{kind}Models.{test}_delete[": DELETED for kind in ("", "Async") for test in
       ("test_method", "test_raw_response", "test_streaming_response")},
    **{f"ompletions.Test{kind}Completions.test_method_create_with_all_params_overload": BODY for kind in ("", "Async")},
    **{f"chat.test_completions.Test{kind}Completions.{test}_{verb}": STORED for kind in ("", "Async") for test in
       ("test_method", "test_raw_response", "test_streaming_response") for verb in
       ("retrieve", "update", "list", "delete")},
    **{f"test_embeddings.Test{kind}Embeddings.{test}[{mode}]": BASE64 for kind, mode in
       (("", "strict"), ("Async", "strict"), ("Async", "aiohttp")) for test in
       ("test_method_create", "test_raw_response_create", "test_streaming_response_create")},
}  # fmt: skip


@pytest.mark.model
def test_openais_own_tests_pass(server, clients, clients_folder):
    folder = next(clients_folder.glob("openai-*"))
    modules = [f"tests/api_resources/{module}" for module in MODULES]
    cases = clients.pytest(*modules, cwd=folder, TEST_API_BASE_URL=server + "/v1")
    assert not (wrong := unexpected(cases, NOT_OURS)), "\n".join(wrong)
    assert len([case for case in cases if case.outcome == "passed"]) >= 120
