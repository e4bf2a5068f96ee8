"""The features that must work with each other: how each is switched on, and how one sees that it was."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from octavo.errors import OctavoError
from octavo.frontend.sample import OpenRequest
from octavo.request import EngineStats, SamplingParams, StructuredOutputs
from octavo.validation import validate_params

VOCAB = 320
MAX_MODEL_LEN = 48
STOPS = (*"aeiostnrdlcu", "\ufffd\ufffd")  # a random model's bytes are rarely letters


@dataclass(frozen=True)
class Outcome:
    """What a storm brought.

    Attributes:
        featured: requests that had the feature.
        stats: counters of the storm alone.
        started: priorities in the order in which requests were first scheduled.
    """

    featured: list[OpenRequest]
    stats: EngineStats
    started: list[int]
    num_aborted: int


def always(outcome: Outcome) -> bool:
    return True


@dataclass(frozen=True)
class Feature:
    """One feature.

    Attributes:
        config: engine options that switch it on.
        params: sampling parameters that do, given a generator; None for features of the engine.
        embeds: its requests embed, so they have no sampling parameters.
        seen: whether an outcome shows that it was at work.
    """

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    params: Callable[[random.Random], dict[str, Any]] | None = None
    embeds: bool = False
    seen: Callable[[Outcome], bool] = always

    @property
    def of_requests(self) -> bool:
        return self.params is not None or self.embeds


def samples(outcome: Outcome) -> Iterator[Any]:
    for request in outcome.featured:
        yield from request.samples


def fixed(**params: Any) -> Callable[[random.Random], dict[str, Any]]:
    return lambda rng: dict(params)


def biases(rng: random.Random) -> dict[str, Any]:
    return {"logit_bias": {rng.randrange(5, 200): 3.0}, "allowed_token_ids": (1, *range(3, 230))}


def has_stop(kind: type) -> Callable[[Outcome], bool]:
    return lambda outcome: any(isinstance(sample.stop_reason, kind) for sample in samples(outcome))


def is_ranked(outcome: Outcome) -> bool:
    return all(
        [s.cumulative_logprob for s in request.samples]
        == sorted((s.cumulative_logprob for s in request.samples), reverse=True)
        for request in outcome.featured
    )


FEATURES = [
    Feature("prefix caching", {"enable_prefix_caching": True}, seen=lambda o: o.stats.prefix_hits > 0),
    Feature("chunked prefill", {"max_num_batched_tokens": 10}),
    Feature("preemption", {"num_gpu_blocks_override": 18}, seen=lambda o: o.stats.num_preemptions > 0),
    Feature(
        "swap space",
        {"swap_space": 0.01, "num_gpu_blocks_override": 18},
        seen=lambda o: o.stats.swapped_in_pages > 0,
    ),
    Feature("run-ahead", {"async_scheduling": True}),
    Feature("priorities", {"scheduling_policy": "priority"}, seen=lambda o: o.started == sorted(o.started)),
    Feature("int8 weights", {"quantization": "int8"}),
    Feature("abort", seen=lambda o: o.num_aborted > 0),
    Feature("n > 1", params=fixed(n=3), seen=lambda o: all(len(r.samples) == 3 for r in o.featured)),
    Feature(
        "beam search",
        params=fixed(use_beam_search=True, n=3, length_penalty=0.0, early_stopping="never"),
        seen=is_ranked,
    ),
    Feature(
        "seeded sampling",
        params=lambda rng: {"temperature": 0.9, "top_p": 0.9, "top_k": 60, "min_p": 0.01, "seed": rng.getrandbits(40)},
    ),
    Feature("penalties", params=fixed(repetition_penalty=1.3, frequency_penalty=0.4, presence_penalty=0.2)),
    Feature("logit bias, allowed ids", params=biases),
    Feature("logprobs", params=fixed(logprobs=3), seen=lambda o: any(s.logprobs for s in samples(o))),
    Feature(
        "prompt logprobs",
        params=fixed(prompt_logprobs=2),
        seen=lambda o: all(len(r.prompt_logprobs or ()) == len(r.prompt_token_ids) for r in o.featured),
    ),
    Feature("stop strings", params=fixed(stop=STOPS), seen=has_stop(str)),
    Feature(
        "stop ids, min_tokens", params=fixed(stop_token_ids=tuple(range(20, 300, 6)), min_tokens=2), seen=has_stop(int)
    ),
    Feature("embeddings", embeds=True, seen=lambda o: all(len(r.embedding) == 4 * 64 for r in o.featured)),
]
REGEX = "[p-z]{3,8}"
FEATURES.append(
    Feature(
        "structured outputs",
        params=fixed(structured_outputs=StructuredOutputs(regex=REGEX)),
        seen=lambda o: any(re.fullmatch(REGEX, sample.text) for sample in samples(o)),
    )
)
PAIRS = list(itertools.combinations(FEATURES, 2))


def params_of(features: list[Feature], rng: random.Random) -> SamplingParams:
    """Sampling parameters with all of these switched on; greedy unless one samples."""
    values: dict[str, Any] = {"temperature": 0.0, "max_tokens": 12, "seed": 0}
    for feature in features:
        if feature.params is not None:
            values |= feature.params(rng)
    return SamplingParams(**values)


def verdict(one: Feature, other: Feature) -> str:
    """ "together" on one request, "beside" each other in one batch, or the code of the error that refuses a request."""
    if (one.embeds and other.params) or (other.embeds and one.params):
        return "beside"
    try:
        validate_params(
            params_of([one, other], random.Random(0)),
            vocab_size=VOCAB,
            max_model_len=MAX_MODEL_LEN,
            max_logprobs=20,
            eos_token_ids=(1,),
        )
    except OctavoError as error:
        return error.code
    return "together"
