"""instructor: answers as Pydantic models, by a tool and by a JSON schema."""

from __future__ import annotations

from typing import Literal

import instructor
import openai
import pytest
from pydantic import BaseModel, ConfigDict
from target import BASE_URL, MODEL


class Weather(BaseModel):
    """The weather of a day."""

    model_config = ConfigDict(extra="forbid")  # a small model would go on with further fields
    sky: Literal["clear", "cloudy"]
    warm: bool


@pytest.mark.parametrize("mode", [instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA])
def test_an_answer_is_a_model(mode: instructor.Mode) -> None:
    with openai.OpenAI(base_url=BASE_URL, api_key="none", max_retries=0) as client:
        weather = instructor.from_openai(client, mode=mode).chat.completions.create(
            model=MODEL,
            response_model=Weather,
            messages=[{"role": "user", "content": "It is a warm day with a clear sky."}],
            max_retries=0,
            temperature=0,
        )
    assert isinstance(weather, Weather) and weather.sky in ("clear", "cloudy")
