"""Where the server under test is, for the programs of this folder."""

from __future__ import annotations

import os

URL = os.environ.get("OCTAVO_URL", "http://127.0.0.1:8000")
BASE_URL = URL + "/v1"
MODEL = "SmolLM2-135M-Instruct"
QUESTION = "What are the three primary colors?"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}},
            "required": ["unit"],
            "additionalProperties": False,
        },
    },
}
"""A function whose arguments a small model can write in few tokens."""
