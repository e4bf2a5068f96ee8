"""Sampling flags of the verbs that answer: `run` and `chat`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import click

from octavo.cli.options import given
from octavo.config import build, flag


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingOptions:
    """How an answer is chosen."""

    max_tokens: int | None = flag(None, "Most tokens of an answer; default: until the model ends it.", min=1)
    temperature: float = flag(0.2, "Randomness; 0 always takes the likeliest token.", min=0.0, max=2.0)
    top_p: float = flag(0.9, "Draw from the likeliest tokens that have this probability in all.", min=0.0, max=1.0)
    top_k: int = flag(0, "Draw from this many of the likeliest tokens; 0 keeps all.", min=-1)
    min_p: float = flag(0.0, "Drop tokens less likely than this share of the likeliest.", min=0.0, max=1.0)
    repetition_penalty: float = flag(1.0, "Above 1 makes tokens that were used before less likely.", min=0.01)
    presence_penalty: float = flag(
        0.0, "Subtracted from the logit of each token already in the answer.", min=-2.0, max=2.0
    )
    frequency_penalty: float = flag(0.0, "The same, for each time it is there.", min=-2.0, max=2.0)
    seed: int | None = flag(None, "The same seed and prompt give the same answer; default: drawn.", min=0)
    stop: tuple[str, ...] = flag((), "Text that ends the answer.", repeat=True)
    ignore_eos: bool = flag(False, "Go on after the model's own end, to --max-tokens.")


@dataclass(frozen=True)
class _Sampling:
    options: SamplingOptions


def sampling_settings(ctx: click.Context) -> dict[str, Any]:
    """All sampling options, checked, by the names that `SamplingParams` and the OpenAI API give them.

    Raises:
        ConfigError: one is out of its bounds.
    """
    options = build(_Sampling, given(ctx, SamplingOptions)).options
    return {name: getattr(options, name) for name in SamplingOptions.__dataclass_fields__}
