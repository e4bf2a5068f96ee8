"""Every knob. CLI flags, YAML keys and the reference page are made from these dataclasses; all are frozen.

A field's flag is its name with dashes; a boolean gets `--name/--no-name`. `help` is what the reference shows.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from octavo.errors import ConfigError

T = TypeVar("T")


def flag(default: Any, help: str, **metadata: Any) -> Any:
    """A config field. Metadata: `help`; optional `min`, `max`, and `repeat` (the flag may be given several times)."""
    return dataclasses.field(default=default, metadata={"help": help, **metadata})


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelOptions:
    """Which model, and how its weights are held."""

    model: str = flag(
        "SmolLM2-135M-Instruct",
        "Model: a folder, a .gguf file, a catalogue name (`octavo list`), or a Hugging Face repository.",
    )
    tokenizer: str | None = flag(None, "Take the tokenizer from this model or folder instead.")
    revision: str | None = flag(None, "Branch, tag or commit, for a Hugging Face repository.")
    load_format: Literal["auto", "safetensors", "gguf", "dummy"] = flag(
        "auto", "Where weights come from; `dummy` draws random ones for a bare config.json."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = flag(
        "auto", "Compute type; auto is float32 on a CPU, the checkpoint's own on a GPU."
    )
    quantization: Literal["auto", "none", "int8", "int4", "gguf", "fp8", "fp8_per_tensor"] = flag(
        "auto",
        "How matrices are held. On a CPU: int8; int4 in blocks of 32; gguf keeps a file's 4-bit blocks and makes int8 "
        "of the rest. On a GPU: fp8 (e4m3, a scale for each output; fp8_per_tensor has one for each matrix), with "
        "activations quantized token by token. auto is gguf for GGUF files, fp8 on a GPU for files that have it, "
        "else none.",
    )
    max_model_len: int | None = flag(
        None,
        "Longest sequence in tokens, prompt and output; default: the model's, cut to what memory holds.",
        min=1,
    )
    skip_tokenizer_init: bool = flag(False, "Token ids in, token ids out; no tokenizer is loaded.")
    chat_template: str | None = flag(None, "Jinja file that replaces the model's own chat template.")
    structured_outputs_timeout: float = flag(
        5.0, "Seconds that a request's schema, pattern or grammar may take to compile.", min=0.1, max=60.0
    )
    seed: int = flag(0, "Seed of dummy weights and of requests that bring none.")


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheOptions:
    """The paged KV memory."""

    block_size: int | None = flag(None, "Tokens a page holds; default 16 on a CPU, 64 on a GPU.", min=1, max=1024)
    kv_cache_dtype: Literal["auto", "float32", "bfloat16", "float16", "fp8", "fp8_e4m3"] = flag(
        "auto",
        "Type of cached keys and values; auto is the compute type (bfloat16 beside int8 weights). fp8, on a GPU, is "
        "e4m3 with the checkpoint's scales or 1; fp8_e4m3 is another name for it.",
    )
    kv_cache_memory_bytes: int | None = flag(
        None,
        "Bytes for KV pages; default: what --gpu-memory-utilization leaves, on a CPU 256 MiB or one sequence.",
        min=1,
    )
    num_gpu_blocks_override: int | None = flag(None, "Exact number of KV pages, whatever the memory.", min=1)
    gpu_memory_utilization: float = flag(0.95, "Share of the GPU's memory to use in all.", min=0.01, max=1.0)
    swap_space: float | None = flag(
        None,
        "GiB of host memory in which preempted sequences keep their pages instead of being computed anew; default: on "
        "a GPU 16, at most an eighth of the host's memory; on a CPU 0.",
        min=0.0,
    )
    enable_prefix_caching: bool = flag(True, "Reuse pages of equal prompt beginnings.")


@dataclass(frozen=True, kw_only=True, slots=True)
class SchedulerOptions:
    """What runs next."""

    max_num_seqs: int | None = flag(
        None, "Most sequences in one step; default 1024 on a GPU, 128 on a CPU.", min=1, max=65536
    )
    max_num_batched_tokens: int | None = flag(
        None,
        "Most tokens in one step (longer prompts are chunked); default 8192 on a GPU, 512 on a CPU.",
        min=1,
        max=1048576,
    )
    scheduling_policy: Literal["fcfs", "priority"] = flag("fcfs", "Order of waiting requests.")
    async_scheduling: bool = flag(True, "Plan step N+1 before step N's tokens are known.")
    max_num_queued_reqs: int = flag(4096, "Waiting requests above this are refused with 503.", min=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceOptions:
    """Where it runs."""

    device: Literal["auto", "cpu", "cuda"] = flag("auto", "auto is cuda where there is a GPU.")
    threads: int | None = flag(None, "CPU compute threads; default: the cores this process may use.", min=1, max=1024)
    attention_backend: Literal["auto", "triton", "fa3"] = flag(
        "auto", "Kernel of prompt attention on a GPU; auto is fa3 where it can be had (Hopper, octavo[fa3])."
    )
    shared_prefix_attention: bool = flag(
        True, "Read pages that several sequences of a step share once, where that pays (GPU, head sizes up to 128)."
    )
    batch_invariant: bool = flag(
        False,
        "The same logprobs, to the bit, whatever else is in the batch and however a prompt is cut; slower.",
    )
    enforce_eager: bool = flag(False, "No CUDA graphs: the simple path, for finding faults.")
    native_kernels: bool = flag(True, "Use the compiled CPU kernels; without them, plain torch.")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerOptions:
    """The HTTP server."""

    host: str = flag("127.0.0.1", "Address to listen on; others than loopback need a key.")
    port: int = flag(8000, "Port to listen on; 0 picks a free one.", min=0, max=65535)
    api_server_count: int = flag(
        1,
        "Processes that speak HTTP, tokenize and make text of tokens, over one port and one engine.",
        min=1,
        max=64,
    )
    api_key: tuple[str, ...] = flag(
        (),
        "Key clients must send. OCTAVO_API_KEY does the same, and does not show in the list of processes.",
        repeat=True,
    )
    api_key_file: str | None = flag(None, "File of further keys, one a line; read again on SIGHUP.")
    allow_unauthenticated: bool = flag(False, "Listen on other addresses than loopback although there is no key.")
    allowed_host: tuple[str, ...] = flag(
        (), "Name with a dot that clients may use for a server on loopback without a key, as a proxy's.", repeat=True
    )
    backend: Literal["model", "sim"] = flag(
        "model",
        "sim: no model, but a simulated engine that answers at once with its prompt, to try clients or the server.",
    )
    served_model_name: tuple[str, ...] = flag((), "Names clients may use for the model.", repeat=True)
    enable_auto_tool_choice: bool = flag(True, "Take tool_choice auto: the model decides whether it calls functions.")
    tool_call_parser: str = flag(
        "auto",
        "How the model writes calls: a format's name, auto (as its chat template shows, else hermes), or none.",
    )
    reasoning_parser: str = flag(
        "auto", "How the model writes reasoning: a format's name, auto (as its chat template shows), or none."
    )
    enable_tokenizer_info_endpoint: bool = flag(
        False, "Serve /tokenizer_info: the chat template and the control tokens' spellings."
    )
    responses_store_size: int = flag(
        1000,
        "Responses that are kept in memory for previous_response_id and for being read again; 0 keeps none.",
        min=0,
    )
    max_logprobs: int = flag(20, "Most top logprobs a request may ask for.", min=0)
    generation_config: str = flag(
        "auto",
        "Where temperature, top_p, top_k, min_p, repetition_penalty, max_tokens come from if a request has none: auto "
        "(the model's generation_config.json), none (OpenAI's defaults), or a folder with such a file.",
    )
    default_max_tokens: int | None = flag(
        None, "Most tokens of an answer whose request names no limit; default: what the context has room for.", min=1
    )
    max_body_bytes: int = flag(32 << 20, "Larger request bodies get 413.", min=1024)
    max_body_bytes_in_all: int = flag(
        512 << 20, "Bytes of bodies that all open requests may hold together; beyond them comes 503.", min=1024
    )
    max_choices: int = flag(1024, "Most sequences one request may ask for: prompts times n.", min=1)
    max_connections: int = flag(8192, "Most open connections; beyond it only probes are answered.", min=1)
    max_queued_reqs_per_key: int | None = flag(
        None,
        "Waiting requests of one key above this get 429; default: with several keys, half the queue.",
        min=1,
    )
    prefix_cache_isolation: Literal["auto", "key", "none"] = flag(
        "auto", "key: requests of different keys share no cached pages. auto is key where there are several."
    )
    request_timeout: float = flag(3600.0, "Seconds a request may take before it ends with 504; 0 is any.", min=0.0)
    read_timeout: float = flag(
        30.0, "Seconds for a request's head; for its body so many and one more for each 4 KiB of it.", min=0.1
    )
    write_timeout: float = flag(60.0, "Seconds a client may leave what was sent to it unread.", min=0.1)
    sse_keep_alive: float = flag(15.0, "Seconds without a token after which a stream gets a comment, or 0.", min=0.0)
    step_timeout: float = flag(
        120.0,
        "Seconds without a sign of the engine after which it is ended and started again (after a quarter of them, "
        "/ready says hung, and a front process is replaced); at least 3, or 0 to wait for ever.",
        min=0.0,
    )
    max_engine_restarts: int = flag(
        3, "Restarts of an engine within ten minutes; at one more death the server ends.", min=0
    )
    log_format: Literal["text", "json"] = flag("text", "How the log on stderr is written; json is one object a line.")
    log_level: Literal["debug", "info", "warning", "error"] = flag(
        "info", "What is logged; info has a line for each request, debug also for probes. Prompts never are."
    )
    otlp_traces_endpoint: str | None = flag(
        None, "Send traces there by OTLP over HTTP, as to http://127.0.0.1:4318/v1/traces; needs octavo[otel]."
    )
    drain_delay: float = flag(
        0.0,
        "Seconds after SIGTERM in which /ready says 503 and requests are still taken: until no balancer sends any.",
        min=0.0,
    )
    drain_timeout: float = flag(30.0, "Seconds that open requests may take to finish after SIGTERM.", min=0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """All of an engine's options. `EngineConfig.of(model=..., max_num_seqs=...)` sorts flat names into groups."""

    model: ModelOptions = dataclasses.field(default_factory=ModelOptions)
    cache: CacheOptions = dataclasses.field(default_factory=CacheOptions)
    scheduler: SchedulerOptions = dataclasses.field(default_factory=SchedulerOptions)
    device: DeviceOptions = dataclasses.field(default_factory=DeviceOptions)

    @classmethod
    def of(cls, **options: Any) -> EngineConfig:
        return build(cls, options)


def groups(config_class: type[Any]) -> dict[str, type[Any]]:
    """The option groups of a config class: field name to dataclass."""
    hints = typing.get_type_hints(config_class)
    return {f.name: hints[f.name] for f in dataclasses.fields(config_class)}


def build(config_class: type[T], options: Mapping[str, Any]) -> T:
    """Make a dataclass of option groups from flat option names.

    Raises:
        ConfigError: a name is unknown (the nearest known one is suggested) or a value is impossible.
    """
    owner = {f.name: name for name, group in groups(config_class).items() for f in dataclasses.fields(group)}
    values: dict[str, dict[str, Any]] = {name: {} for name in groups(config_class)}
    for name, value in options.items():
        if name not in owner:
            near = difflib.get_close_matches(name, owner, 1)
            raise ConfigError(
                f"There is no option {name!r}.",
                fix=f"Did you mean {near[0]!r}?" if near else "See the reference of flags.",
                param=name,
            )
        values[owner[name]][name] = value
    built = {name: group(**values[name]) for name, group in groups(config_class).items()}
    for group in built.values():
        _check(group)
    return config_class(**built)


def _check(group: Any) -> None:
    """Refuse values outside a field's choices or bounds, naming the flag."""
    hints = typing.get_type_hints(type(group))
    for f in dataclasses.fields(group):
        value, flag_name = getattr(group, f.name), "--" + f.name.replace("_", "-")
        choices = typing.get_args(hints[f.name]) if typing.get_origin(hints[f.name]) is Literal else ()
        if choices and value not in choices:
            raise ConfigError(
                f"{flag_name} cannot be {value!r}.", fix=f"Choose one of: {', '.join(choices)}.", param=f.name
            )
        low, high = f.metadata.get("min"), f.metadata.get("max")
        if value is None or (low is None and high is None):
            continue
        if (
            not isinstance(value, int | float)
            or isinstance(value, bool)
            or not ((low is None or value >= low) and (high is None or value <= high))
        ):
            bounds = f"at least {low}" if high is None else f"between {low} and {high}"
            raise ConfigError(f"{flag_name} cannot be {value!r}.", fix=f"It must be {bounds}.", param=f.name)
