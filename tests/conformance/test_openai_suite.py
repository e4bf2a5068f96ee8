"""The `openai` package's own tests, from its source distribution, through its TEST_API_BASE_URL."""

from __future__ import annotations

import pytest

from tests.conformance.environment import unexpected

MODULES = [
    *("test_models.py", "test_completions.py", "test_embeddings.py", "chat/test_completions.py"),
    *("test_responses.py", "responses/test_input_items.py", "responses/test_input_tokens.py"),
]

BODY = "its body is for a mock that reads nothing: a logit_bias for the token 'foo', best_of 0, audio, a web search"
STORED = "reads, changes or deletes stored chats; Octavo stores none"
DELETED = "deletes a model; those that Octavo serves are fixed at its start"
EMPTY = "sends no input, or all parameters at once with a moderation model and a conversation"
UNKNOWN = "names a response that was never made"
ABSENT = "a route that Octavo does not have: compaction, counting its tokens"
BASE64 = "asks for base64, the package's default, and reads it as what it is not: a list of floats"

KINDS, WAYS = ("", "Async"), ("test_method", "test_raw_response", "test_streaming_response")
RESPONSES = {"create": EMPTY, "retrieve": UNKNOWN, "delete": UNKNOWN, "cancel": UNKNOWN, "compact": ABSENT}
NOT_OURS = {
    **{f"api_resources.test_models.Test{kind}Models.{way}_delete[": DELETED for kind in KINDS for way in WAYS},
    **{f"ompletions.Test{kind}Completions.test_method_create_with_all_params_overload": BODY for kind in KINDS},
    **{f"chat.test_completions.Test{kind}Completions.{way}_{verb}": STORED
       for kind in KINDS for way in WAYS for verb in ("retrieve", "update", "list", "delete")},
    **{f"test_embeddings.Test{kind}Embeddings.{way}_create[{mode}]": BASE64
       for kind, mode in (("", "strict"), ("Async", "strict"), ("Async", "aiohttp")) for way in WAYS},
    **{f"test_responses.Test{kind}Responses.{way}_{verb}": why
       for kind in KINDS for way in WAYS for verb, why in RESPONSES.items()},
    **{f"Test{kind}Input{what}.{way}_": why
       for kind in KINDS for what, why in (("Items", UNKNOWN), ("Tokens", ABSENT)) for way in WAYS},
}  # fmt: skip


@pytest.mark.model
def test_openais_own_tests_pass(server, clients, clients_folder):
    folder = next(clients_folder.glob("openai-*"))
    modules = [f"tests/api_resources/{module}" for module in MODULES]
    cases = clients.pytest(*modules, cwd=folder, TEST_API_BASE_URL=server + "/v1")
    assert not (wrong := unexpected(cases, NOT_OURS)), "\n".join(wrong)
    assert len([case for case in cases if case.outcome == "passed"]) >= 145
