"""The nouns every layer shares: what is asked of the engine, and what comes back."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

FinishReason = Literal["stop", "length", "abort", "error"]


class StructuredOutputs(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the whole answer must look like. Exactly one of the first six is set.

    Attributes:
        json: a JSON schema, as an object or as its text.
        regex: a regular expression in the syntax of Rust's `regex` crate, without anchors: it spans the answer.
        choice: the answer is one of these texts.
        grammar: a context-free grammar: EBNF (`root ::= ...`) or Lark (`start: ...`).
        json_object: any JSON object.
        structural_tag: free text in which marked sections keep a schema:
            `{"structures": [{"begin", "schema", "end"}], "triggers": [...]}`.
        whitespace_pattern: of JSON, what may stand between its tokens; "" allows nothing.
        disable_any_whitespace: the same as `whitespace_pattern=""`.
    """

    json: str | dict[str, Any] | bool | None = None
    regex: str | None = None
    choice: tuple[str, ...] | None = None
    grammar: str | None = None
    json_object: bool = False
    structural_tag: str | dict[str, Any] | None = None
    whitespace_pattern: str | None = None
    disable_any_whitespace: bool = False


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How to choose tokens, with vLLM's names and defaults. `octavo.validation` checks every field.

    Order of operations on a row of logits: allowed and banned tokens, min_tokens, logit bias, repetition,
    frequency and presence penalties, temperature, min-p, top-k, top-p, then a draw by Gumbel-max with a
    counter-based generator keyed by (seed, position, token). Logprobs are of the raw logits.

    Attributes:
        n: samples to draw; they share the prompt's pages.
        temperature: 0 means greedy.
        top_k: 0 or -1 keeps all tokens.
        max_tokens: None means up to the model's context.
        seed: the same seed gives the same text, whatever else is in the batch. None draws one.
        stop: strings that end the text; they are not part of it unless `include_stop_str_in_output`.
        logprobs: how many most likely tokens to report beside the chosen one; None reports none.
        prompt_logprobs: the same for each prompt token but the first.
        logit_bias: token id to an addition to its logit.
        allowed_token_ids, banned_token_ids: restrict the vocabulary.
        kept_special_tokens: control tokens, as they are spelled, that `skip_special_tokens` leaves in the text.
        structured_outputs: what the answer must look like; the ids it forbids are barred, whatever else is asked.
        use_beam_search: search for the n most likely answers instead of drawing them (see `BeamSearchParams`).
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    max_tokens: int | None = 16
    min_tokens: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: tuple[int, ...] | None = None
    banned_token_ids: tuple[int, ...] = ()
    skip_special_tokens: bool = True
    kept_special_tokens: tuple[str, ...] = ()
    detokenize: bool = True
    use_beam_search: bool = False
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    structured_outputs: StructuredOutputs | None = None

    @property
    def beam_width(self) -> int:
        """How many beams the engine keeps; 0 without beam search."""
        return self.n if self.use_beam_search else 0


class BeamSearchParams(msgspec.Struct, frozen=True, kw_only=True):
    """How to search for the most likely answers. They are ranked by the sum of their tokens' logprobs over their
    length (tokens generated, the one that ended it included) to the power of `length_penalty`, as in `transformers`.

    Attributes:
        beam_width: hypotheses that are kept at every length, and answers that come back.
        length_penalty: above 0 favours longer answers, below 0 shorter ones.
        early_stopping: True ends the search when `beam_width` answers have ended; False when no open one looks better
            at its present length; "never" when none can become better.
        logprobs: how many most likely tokens to report beside each chosen one; None reports none.
    """

    beam_width: int
    max_tokens: int | None = 16
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    include_stop_str_in_output: bool = False
    logprobs: int | None = None

    def sampling_params(self) -> SamplingParams:
        """The same, as a request carries it."""
        return SamplingParams(
            n=self.beam_width,
            temperature=0.0,
            max_tokens=self.max_tokens,
            min_tokens=self.min_tokens,
            ignore_eos=self.ignore_eos,
            stop_token_ids=self.stop_token_ids,
            include_stop_str_in_output=self.include_stop_str_in_output,
            logprobs=self.logprobs,
            use_beam_search=True,
            length_penalty=self.length_penalty,
            early_stopping=self.early_stopping,
        )


class EngineRequest(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One validated request as it enters the engine.

    Attributes:
        handle: integer chosen by the frontend, unique among its open requests; outputs carry it back.
        prompt_token_ids: at least one id, each in [0, vocab_size).
        params: `max_tokens` and `seed` are already resolved to integers; n samples use seeds derived from it.
        eos_token_ids: ids that end a sequence unless `params.ignore_eos`.
        priority: lower runs first under the priority policy; ties by arrival.
        arrival_time: `time.monotonic()` of the frontend's host.
        cache_salt, adapter, media: parts of the prefix-cache key; requests that differ in one share no pages.
        pooling: "" generates; else nothing is sampled and an embedding comes back: of the last token's hidden state
            after the final norm, or of their mean.
        grammar: `params.structured_outputs` as `octavo.grammar.checker` translated it; "" without.
        tenant: on whose behalf; requests of different tenants share the engine fairly (`octavo.scheduler.fairness`).
    """

    handle: int
    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    eos_token_ids: tuple[int, ...] = ()
    priority: int = 0
    arrival_time: float = 0.0
    cache_salt: str = ""
    adapter: str = ""
    media: str = ""
    tenant: str = ""
    pooling: Literal["", "last", "mean"] = ""
    grammar: str = ""


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Logprobs at one position: the token's own (natural log), its rank from 1, and the most likely tokens."""

    token_id: int
    logprob: float
    rank: int
    top_ids: list[int]
    top_logprobs: list[float]


class Finished(msgspec.Struct, frozen=True, array_like=True):
    """The end of one sample. `stop_reason` is the stop id that matched (None for EOS); `error` is set on "error".

    `cumulative_logprob` is the sum of the tokens' logprobs, which only beam search tells. `complete`: on "stop", the
    last token is text, as a grammar ended with it and needed no id that says so.
    """

    handle: int
    index: int
    reason: FinishReason
    stop_reason: int | None = None
    error: str = ""
    cumulative_logprob: float | None = None
    complete: bool = False


class Started(msgspec.Struct, frozen=True, array_like=True):
    """A request's first scheduling: how many prompt tokens came from the prefix cache, and when (monotonic)."""

    handle: int
    num_cached_tokens: int
    scheduled_time: float


class SampleLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """The logprobs of one sampled token."""

    handle: int
    index: int
    entry: TokenLogprobs


class PromptLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Logprobs of prompt tokens [start, start + len(entries)); chunked prefill sends several, in order."""

    handle: int
    start: int
    entries: list[TokenLogprobs]


class Pooled(msgspec.Struct, frozen=True, array_like=True):
    """A request's embedding: float32 values, little-endian, as the model has them (not normalised)."""

    handle: int
    values: bytes


class StepFigures(msgspec.Struct, frozen=True, array_like=True):
    """One step of the engine: seconds that it took, and tokens that it computed (of prompts, and one a decode)."""

    seconds: float = 0.0
    num_tokens: int = 0


class EngineStats(msgspec.Struct, frozen=True, array_like=True):
    """A snapshot after a step. Counters count from the engine's start; gauges are of now."""

    num_running: int = 0
    num_waiting: int = 0
    num_pages: int = 0
    num_free_pages: int = 0
    num_preemptions: int = 0
    prefix_queries: int = 0  # prompt tokens looked up
    prefix_hits: int = 0  # prompt tokens found
    num_evictions: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    num_steps: int = 0
    jump_tokens: int = 0  # generated without being drawn, as a grammar left no other
    last_step: StepFigures = StepFigures()
    swapped_out_pages: int = 0  # of preempted sequences, copied to host memory
    swapped_in_pages: int = 0  # and back


class StepOutputs(msgspec.Struct, frozen=True, array_like=True):
    """What one step brought, for the frontends. `handles`, `indices`, `tokens` are parallel: one row a token.

    A sample's last token and its `Finished` come in the same message. All lists are in schedule order.
    """

    handles: list[int]
    indices: list[int]
    tokens: list[int]
    finished: list[Finished] = []
    started: list[Started] = []
    logprobs: list[SampleLogprobs] = []
    prompt_logprobs: list[PromptLogprobs] = []
    stats: EngineStats | None = None
    pooled: list[Pooled] = []


class CompletionOutput(msgspec.Struct, kw_only=True):
    """One sample's text. `logprobs[i]` belongs to `token_ids[i]`; their sum is also known of beams without logprobs."""

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    error: str = ""
    cumulative_logprob: float | None = None


class RequestMetrics(msgspec.Struct, kw_only=True):
    """Times in seconds since the request arrived."""

    queue_time: float = 0.0
    time_to_first_token: float = 0.0
    total_time: float = 0.0


class RequestOutput(msgspec.Struct, kw_only=True):
    """What `LLM.generate` returns for one prompt and `AsyncLLM.generate` yields as it grows.

    `prompt_logprobs[0]` is None: the first token has no context to be predicted from.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    num_cached_tokens: int = 0
    metrics: RequestMetrics = msgspec.field(default_factory=RequestMetrics)


class BeamSearchSequence(msgspec.Struct, kw_only=True):
    """One answer of a beam search.

    Attributes:
        tokens, text: prompt and answer.
        cum_logprob: sum of the answer's logprobs; score: what it was ranked by.
    """

    tokens: list[int]
    text: str
    cum_logprob: float
    score: float
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None


class BeamSearchOutput(msgspec.Struct, kw_only=True):
    """What `LLM.beam_search` returns for one prompt: its answers, the best first."""

    request_id: str
    sequences: list[BeamSearchSequence]
    error: str = ""

    @classmethod
    def of(cls, result: RequestOutput, prompt: str, length_penalty: float) -> BeamSearchOutput:
        """From a request's output; `prompt` is its text."""
        sequences = []
        for output in result.outputs:
            total = output.cumulative_logprob if output.cumulative_logprob is not None else float("-inf")
            sequences.append(
                BeamSearchSequence(
                    tokens=result.prompt_token_ids + output.token_ids,
                    text=prompt + output.text,
                    cum_logprob=total,
                    score=total / max(1, len(output.token_ids)) ** length_penalty,
                    logprobs=output.logprobs,
                    finish_reason=output.finish_reason,
                    stop_reason=output.stop_reason,
                )
            )
        return cls(request_id=result.request_id, sequences=sequences, error=result.outputs[0].error)


class EmbeddingOutput(msgspec.Struct, kw_only=True):
    """A vector of `hidden_size` floats, or of as many as were asked for."""

    embedding: list[float]


class EmbeddingRequestOutput(msgspec.Struct, kw_only=True):
    """What `LLM.embed` returns for one prompt."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: EmbeddingOutput
    num_cached_tokens: int = 0
    finished: bool = True
