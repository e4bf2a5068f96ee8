"""From a model's name to a runner that is ready: resolve, read the config, load weights, size the KV pool."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

import torch

from octavo.attention import attend
from octavo.config import EngineConfig
from octavo.engine.info import EngineInfo
from octavo.engine.phases import PhaseTimer
from octavo.errors import ConfigError
from octavo.kernels import native
from octavo.layers.context import LayerContext
from octavo.layers.rope import cos_sin_table
from octavo.model_config import ModelConfig
from octavo.models.llama import Llama
from octavo.models.registry import build_model, check_supported
from octavo.quant import linear_scheme
from octavo.runner.cpu import available_cores
from octavo.runner.memory import MemoryPlan, plan_memory
from octavo.runner.runner import Runner
from octavo.weights.checkpoint import Checkpoint, open_checkpoint
from octavo.weights.resolve import resolve

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A runner that is ready to launch plans, and what it is."""

    runner: Runner
    info: EngineInfo


def load(options: EngineConfig, timer: PhaseTimer) -> Loaded:
    """Load the model and allocate its KV pool.

    Raises:
        ModelNotFoundError, ModelFileError, ConfigError: with cause and fix.
    """
    check_device(options)
    threads = options.device.threads or available_cores()
    torch.set_num_threads(threads)
    native.configure(enabled=options.device.native_kernels, threads=threads)
    with timer.phase("find the model"):
        path = resolve(options.model.model, revision=options.model.revision)
        checkpoint = open_checkpoint(path, options.model.load_format, seed=options.model.seed)
    with closing(checkpoint.weights):
        config = ModelConfig.from_hf(checkpoint.config)
        check_supported(config.architecture)
        quantization = choose_quantization(options, checkpoint)
        dtype = choose_dtype(options)
        kv_dtype = choose_kv_dtype(options, dtype, quantization)
        plan_memory(config, options, kv_dtype, weight_bytes=0)  # refuses impossible options before minutes of loading
        model, weight_bytes = _load_weights(config, options, checkpoint, quantization, dtype, timer)
    with timer.phase("allocate the KV cache"):
        memory = plan_memory(config, options, kv_dtype, weight_bytes)
        runner = _build_runner(model, config, options, memory, kv_dtype)
    return Loaded(runner, _info(options, config, checkpoint, memory, quantization, dtype, timer))


def check_device(options: EngineConfig) -> None:
    """Raises ConfigError for a device or compute type this version cannot run."""
    if options.device.device == "cuda":
        raise ConfigError(
            "This version runs on CPUs only; the GPU runner is not part of it yet.",
            fix="Use --device cpu or leave --device out.",
            param="device",
        )
    if options.model.dtype not in ("auto", "float32"):
        raise ConfigError(
            f"--dtype {options.model.dtype} is not served on a CPU: its arithmetic would be slower than float32's.",
            fix="Leave --dtype out; --quantization int8 is the fast path, --kv-cache-dtype saves memory.",
            param="dtype",
        )


def choose_dtype(options: EngineConfig) -> torch.dtype:
    """The compute type; on a CPU always float32."""
    return _DTYPES["float32" if options.model.dtype == "auto" else options.model.dtype]


def choose_quantization(options: EngineConfig, checkpoint: Checkpoint) -> str:
    """auto means int8 for GGUF files (they are quantized already), none for all others."""
    if options.model.quantization != "auto":
        return options.model.quantization
    return "int8" if checkpoint.gguf is not None else "none"


def choose_kv_dtype(options: EngineConfig, dtype: torch.dtype, quantization: str) -> torch.dtype:
    """auto means the compute type beside plain weights, bfloat16 beside quantized ones."""
    if options.cache.kv_cache_dtype != "auto":
        return _DTYPES[options.cache.kv_cache_dtype]
    return dtype if quantization == "none" else torch.bfloat16


def _load_weights(
    config: ModelConfig,
    options: EngineConfig,
    checkpoint: Checkpoint,
    quantization: str,
    dtype: torch.dtype,
    timer: PhaseTimer,
) -> tuple[Llama, int]:
    """The model, and the bytes that its weights take."""
    total, taken = max(1, count_parameters(config)), 0
    with timer.phase("load the weights") as report:

        def progress(count: int) -> None:
            nonlocal taken
            taken += count
            report(min(1.0, taken / total))

        ctx = LayerContext(
            checkpoint.weights, torch.device("cpu"), dtype, linear_scheme(quantization), progress=progress
        )
        with torch.inference_mode():
            model = build_model(config, ctx)
    weights_each = 1 if quantization == "int8" else dtype.itemsize
    return model, taken * weights_each


def count_parameters(config: ModelConfig) -> int:
    """Parameters of a Llama-shaped model."""
    hidden, inner = config.hidden_size, config.intermediate_size
    q_size, kv_size = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    layer = hidden * (2 * q_size + 2 * kv_size) + 3 * hidden * inner + 2 * hidden
    matrices = 1 if config.tie_word_embeddings else 2
    return config.num_hidden_layers * layer + matrices * config.vocab_size * hidden + hidden


def _build_runner(
    model: Llama, config: ModelConfig, options: EngineConfig, memory: MemoryPlan, kv_dtype: torch.dtype
) -> Runner:
    page_size = options.cache.block_size
    shape = (memory.num_pages, config.num_key_value_heads, page_size, config.head_dim)
    kv_caches = [
        (torch.zeros(shape, dtype=kv_dtype), torch.zeros(shape, dtype=kv_dtype))
        for _ in range(config.num_hidden_layers)
    ]
    return Runner(
        model,
        kv_caches,
        cos_sin_table(config.rope, config.head_dim, memory.max_model_len, config.max_position_embeddings),
        attend,
        max_num_seqs=max_num_seqs(options),
        max_model_len=memory.max_model_len,
        vocab_size=config.vocab_size,
        page_size=page_size,
        asynchronous=options.scheduler.async_scheduling,
    )


def max_num_seqs(options: EngineConfig) -> int:
    return options.scheduler.max_num_seqs or 128


def _info(
    options: EngineConfig,
    config: ModelConfig,
    checkpoint: Checkpoint,
    memory: MemoryPlan,
    quantization: str,
    dtype: torch.dtype,
    timer: PhaseTimer,
) -> EngineInfo:
    notes = list(memory.notes)
    if not native.available():
        notes.append(f"Compiled CPU kernels are off ({native.reason()}): this is the slower path.")
    return EngineInfo(
        model=checkpoint.name,
        architecture=config.architecture,
        device=f"cpu, {torch.get_num_threads()} threads",
        dtype=str(dtype).removeprefix("torch."),
        quantization=quantization,
        vocab_size=config.vocab_size,
        max_model_len=memory.max_model_len,
        num_pages=memory.num_pages,
        page_size=options.cache.block_size,
        max_num_seqs=max_num_seqs(options),
        max_num_batched_tokens=options.scheduler.max_num_batched_tokens or 512,
        memory=tuple(memory.table()),
        startup=tuple(timer.seconds),
        notes=tuple(notes),
    )
