"""langchain-tests' standard class for chat models, over langchain-openai's ChatOpenAI."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests
from target import BASE_URL, MODEL


class TestOctavo(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "base_url": BASE_URL,
            "api_key": "none",
            "model": MODEL,
            "max_retries": 0,
            "stream_usage": True,
            # A small model on its way to the end: quotes are likelier, and what it said already is less so.
            "max_tokens": 128,
            "frequency_penalty": 0.3,
            "logit_bias": {18: 4, 1002: 4, 1270: 4, 23597: 8, 109: 4},  # " ", ." "} }
            "model_kwargs": {"parallel_tool_calls": False},  # a small model does not stop at one call
        }

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        return {"temperature": 0}

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "gpt-3.5-turbo-instruct"  # another of the served names

    @pytest.fixture
    def model(self, request: Any) -> BaseChatModel:
        extra = getattr(request, "param", None) or {}
        return ChatOpenAI(**self.standard_chat_model_params, **self.chat_model_params, **extra)
