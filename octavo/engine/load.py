"""From a model's name to a runner that is ready: resolve, read the config, load weights, size the KV pool."""

from __future__ import annotations

import dataclasses
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from octavo.attention import attend, attend_alone
from octavo.attention.fa3 import choose_fa3, choose_fa3_fresh
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
from octavo.quant import schemes
from octavo.runner.cpu import available_cores
from octavo.runner.host_memory import host_memory_bytes, swap_bytes
from octavo.runner.memory import MemoryPlan, plan_memory
from octavo.runner.runner import Runner, StepRunner
from octavo.weights.checkpoint import Checkpoint, open_checkpoint
from octavo.weights.dummy import DummySource
from octavo.weights.resolve import cache_folder, resolve
from octavo.weights.upload import Uploader

if TYPE_CHECKING:
    from octavo.runner.cuda import CudaRunner

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A runner that is ready to launch plans, and what it is."""

    runner: StepRunner
    info: EngineInfo


def load(options: EngineConfig, timer: PhaseTimer) -> Loaded:
    """Load the model and allocate its KV pool.

    Raises:
        ModelNotFoundError, ModelFileError, ConfigError: with cause and fix.
    """
    device = choose_device(options)
    threads = options.device.threads or available_cores()
    torch.set_num_threads(threads)
    native.configure(enabled=options.device.native_kernels and device.type == "cpu", threads=threads)
    if device.type == "cuda":
        with timer.phase("start the GPU"):
            torch.zeros(1, device=device)
    with timer.phase("find the model"):
        path = resolve(options.model.model, revision=options.model.revision)
        checkpoint = open_checkpoint(path, options.model.load_format, seed=options.model.seed)
    with closing(checkpoint.weights):
        config = ModelConfig.from_hf(checkpoint.config)
        check_supported(config.architecture)
        quantization = choose_quantization(options, checkpoint, device)
        dtype = choose_dtype(options, config, device)
        kv_dtype = choose_kv_dtype(options, dtype, quantization, device)
        if options.model.load_format == "dummy":  # drawn where they are used: a large model in no time
            checkpoint = dataclasses.replace(checkpoint, weights=DummySource(options.model.seed, device, dtype))
        if device.type == "cuda":
            torch.cuda.empty_cache()  # of an engine that was closed
        limits = StepLimits.of(options, device)
        page_size = options.cache.block_size or (64 if device.type == "cuda" else 16)
        weight_bytes = count_weight_bytes(config, quantization, dtype)
        budget = kv_budget(options, config, device, dtype, limits, still_to_load=weight_bytes)
        swap = swap_bytes(options.cache.swap_space, device.type, host_memory_bytes())
        plan_memory(
            config, options, kv_dtype, page_size, 0, budget
        )  # refuses impossible options before minutes of loading
        model = _load_weights(config, options, checkpoint, quantization, dtype, device, timer)
        if device.type == "cuda":
            torch.cuda.empty_cache()  # what loading held beside the weights is for pages
    with timer.phase("allocate the KV cache"):
        budget = kv_budget(options, config, device, dtype, limits)
        memory = plan_memory(config, options, kv_dtype, page_size, weight_bytes, budget, swap)
        runner = _build_runner(model, config, options, memory, kv_dtype, page_size, device, limits)
    if isinstance(runner, Runner):
        return Loaded(runner, _info(options, config, checkpoint, memory, quantization, dtype, device, limits, timer))
    runner.prepare(timer.phase)
    return Loaded(runner, _info(options, config, checkpoint, memory, quantization, dtype, device, limits, timer))


@dataclass(frozen=True, slots=True)
class StepLimits:
    """Bounds of a step, from the options or the device's defaults."""

    max_num_seqs: int
    max_num_batched_tokens: int

    @classmethod
    def of(cls, options: EngineConfig, device: torch.device) -> StepLimits:
        seqs, tokens = (1024, 8192) if device.type == "cuda" else (128, 512)
        asked = options.scheduler
        return cls(asked.max_num_seqs or seqs, asked.max_num_batched_tokens or tokens)


def choose_device(options: EngineConfig) -> torch.device:
    """auto is a GPU where there is one.

    Raises:
        ConfigError: a GPU is asked for and there is none.
    """
    asked = options.device.device
    if asked == "cpu" or (asked == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(
            "--device cuda: torch sees no GPU here, only a CPU.",
            fix="Install a torch build with CUDA and check the driver, or use --device cpu.",
            param="device",
        )
    return torch.device("cuda", torch.cuda.current_device())


def choose_dtype(options: EngineConfig, config: ModelConfig, device: torch.device) -> torch.dtype:
    """The compute type: float32 on a CPU; the checkpoint's own on a GPU, bfloat16 if that is float32.

    Raises:
        ConfigError: the device does not serve that type.
    """
    asked = options.model.dtype
    if device.type == "cuda":
        if asked == "float32":
            raise ConfigError("--dtype float32 is not served on a GPU.", fix="Use bfloat16 or float16.", param="dtype")
        own = config.dtype if config.dtype != torch.float32 else torch.bfloat16
        return own if asked == "auto" else _DTYPES[asked]
    if asked not in ("auto", "float32"):
        raise ConfigError(
            f"--dtype {asked} is not served on a CPU: its arithmetic would be slower than float32's.",
            fix="Leave --dtype out; --quantization int8 is the fast path, --kv-cache-dtype saves memory.",
            param="dtype",
        )
    return torch.float32


def choose_quantization(options: EngineConfig, checkpoint: Checkpoint, device: torch.device) -> str:
    """auto means what the file has where it is fast: gguf on a CPU, fp8 on a GPU ("fp8_checkpoint"); else none.

    Raises:
        ConfigError: there are no kernels for the scheme on this device.
    """
    asked = options.model.quantization
    if device.type == "cuda":
        if asked in ("int8", "int4", "gguf"):
            raise ConfigError(
                f"--quantization {asked} is for CPUs.", fix="Use fp8 on a GPU, or leave it out.", param="quantization"
            )
        if asked.startswith("fp8"):
            check_fp8(device, f"--quantization {asked}", "quantization")
        if asked == "auto" and checkpoint.fp8:
            return "fp8_checkpoint" if has_fp8(device) else "none"
        return "none" if asked == "auto" else asked
    if asked != "auto":
        return asked
    return "gguf" if checkpoint.gguf is not None else "none"


def has_fp8(device: torch.device) -> bool:
    """Whether a GPU multiplies and converts e4m3 (Ada, Hopper and newer)."""
    return torch.cuda.get_device_capability(device) >= (8, 9)


def check_fp8(device: torch.device, what: str, param: str) -> None:
    """Raises ConfigError on a GPU that is too old for `what`."""
    if not has_fp8(device):
        raise ConfigError(
            f"{what} needs a GPU of compute capability 8.9 or newer; this is {torch.cuda.get_device_name(device)}.",
            fix="Leave it out on this GPU.",
            param=param,
        )


def choose_kv_dtype(options: EngineConfig, dtype: torch.dtype, quantization: str, device: torch.device) -> torch.dtype:
    """auto means the compute type on a GPU and beside plain weights, bfloat16 beside a CPU's quantized ones.

    Raises:
        ConfigError: fp8 where there are no kernels for it.
    """
    asked = options.cache.kv_cache_dtype
    if asked in ("fp8", "fp8_e4m3"):
        if device.type != "cuda":
            raise ConfigError(
                f"--kv-cache-dtype {asked} is for GPUs.",
                fix="Use bfloat16 or float16 on a CPU, which halve the cache.",
                param="kv_cache_dtype",
            )
        check_fp8(device, f"--kv-cache-dtype {asked}", "kv_cache_dtype")
        return torch.float8_e4m3fn
    if asked != "auto":
        return _DTYPES[asked]
    return dtype if quantization == "none" or device.type == "cuda" else torch.bfloat16


def _load_weights(
    config: ModelConfig,
    options: EngineConfig,
    checkpoint: Checkpoint,
    quantization: str,
    dtype: torch.dtype,
    device: torch.device,
    timer: PhaseTimer,
) -> Llama:
    total, taken = max(1, count_parameters(config)), 0
    with timer.phase("load the weights") as report:

        def progress(count: int) -> None:
            nonlocal taken
            taken += count
            report(min(1.0, taken / total))

        held = schemes(quantization, invariant=options.device.batch_invariant)
        upload = Uploader(device) if device.type == "cuda" else None
        ctx = LayerContext(checkpoint.weights, device, dtype, held, progress=progress, upload=upload)
        with torch.inference_mode():
            return build_model(config, ctx)


def count_weight_bytes(config: ModelConfig, quantization: str, dtype: torch.dtype) -> int:
    """What the weights take, but for scales; fp8 leaves embedding and output head in the compute type."""
    total = count_parameters(config)
    if quantization.startswith("fp8"):
        ends = (1 if config.tie_word_embeddings else 2) * config.vocab_size * config.hidden_size
        return total - ends + ends * dtype.itemsize
    return int(total * {"none": dtype.itemsize, "int4": 0.625}.get(quantization, 1))


def count_parameters(config: ModelConfig) -> int:
    """Parameters of a Llama-shaped model."""
    hidden, inner = config.hidden_size, config.intermediate_size
    q_size, kv_size = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    layer = hidden * (2 * q_size + 2 * kv_size) + 3 * hidden * inner + 2 * hidden
    matrices = 1 if config.tie_word_embeddings else 2
    return config.num_hidden_layers * layer + matrices * config.vocab_size * hidden + hidden


def kv_budget(
    options: EngineConfig,
    config: ModelConfig,
    device: torch.device,
    dtype: torch.dtype,
    limits: StepLimits,
    *,
    still_to_load: int = 0,
) -> int | None:
    """Bytes of a GPU that KV pages may take: its share, less what is in use, less what a step needs. None on a CPU.

    Args:
        still_to_load: bytes of weights that are not on the device yet.
    """
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    available = int(total * options.cache.gpu_memory_utilization) - (total - free) - still_to_load
    return available - step_bytes(config, limits, dtype)


def step_bytes(config: ModelConfig, limits: StepLimits, dtype: torch.dtype) -> int:
    """What a step takes beside weights and pages: activations, logits, sampler tables, graphs."""
    widest = 2 * config.intermediate_size + config.intermediate_size + 6 * config.hidden_size
    activations = limits.max_num_batched_tokens * widest * dtype.itemsize
    sampler = limits.max_num_seqs * config.vocab_size * (4 + 2 + 2 * dtype.itemsize)
    return activations + sampler + (1 << 30)


def choose_backend(options: EngineConfig) -> str:
    """Of prompt attention; batch-invariant mode has kernels of its own.

    Raises:
        ConfigError: another one is asked for beside it.
    """
    asked = options.device.attention_backend
    if options.device.batch_invariant and asked == "fa3":
        raise ConfigError(
            "--attention-backend fa3 is not batch invariant.",
            fix="Leave one of --attention-backend and --batch-invariant out.",
            param="attention_backend",
        )
    return "triton" if options.device.batch_invariant else asked


def _build_runner(
    model: Llama,
    config: ModelConfig,
    options: EngineConfig,
    memory: MemoryPlan,
    kv_dtype: torch.dtype,
    page_size: int,
    device: torch.device,
    limits: StepLimits,
) -> Runner | CudaRunner:
    shape = (memory.num_pages, config.num_key_value_heads, page_size, config.head_dim)
    stored = torch.uint8 if kv_dtype == torch.float8_e4m3fn else kv_dtype  # zero is the same in both

    def pages() -> torch.Tensor:
        return torch.zeros(shape, dtype=stored, device=device).view(kv_dtype)

    kv_caches = [(pages(), pages()) for _ in range(config.num_hidden_layers)]
    table = cos_sin_table(config.rope, config.head_dim, memory.max_model_len, config.max_position_embeddings)
    if device.type == "cuda":
        return cuda_runner(model, config, options, memory, kv_caches, table.to(device), limits)
    choose_fa3(
        choose_backend(options), device, kv_dtype, page_size=page_size, **_heads(config)
    )  # refuses what cannot be
    return Runner(
        model,
        kv_caches,
        table,
        attend_alone if options.device.batch_invariant else attend,
        max_num_seqs=limits.max_num_seqs,
        max_model_len=memory.max_model_len,
        vocab_size=config.vocab_size,
        page_size=page_size,
        asynchronous=options.scheduler.async_scheduling,
        record_decodes=not options.device.enforce_eager,
        num_host_slots=memory.num_host_slots,
    )


def _heads(config: ModelConfig) -> dict[str, int]:
    return {
        "num_heads": config.num_attention_heads,
        "num_kv_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
    }


def cuda_runner(
    model: Llama,
    config: ModelConfig,
    options: EngineConfig,
    memory: MemoryPlan,
    kv_caches: list[tuple[torch.Tensor, torch.Tensor]],
    table: torch.Tensor,
    limits: StepLimits,
) -> CudaRunner:
    """A GPU's runner. What is not loaded where there is none is imported here."""
    from octavo.runner.cuda import CudaRunner
    from octavo.runner.step_buffers import DeviceShape

    backend, heads, keys = choose_backend(options), _heads(config), kv_caches[0][0]
    shape = DeviceShape(
        **heads,
        vocab_size=config.vocab_size,
        page_size=memory.page_size,
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        max_model_len=memory.max_model_len,
        batch_invariant=options.device.batch_invariant,
    )
    return CudaRunner(
        model,
        kv_caches,
        table,
        shape,
        graphs=not options.device.enforce_eager,
        fa3=choose_fa3(backend, keys.device, keys.dtype, page_size=memory.page_size, **heads),
        fresh=choose_fa3_fresh(backend, keys.device, keys.dtype, **heads),
        kept=cache_folder().parent / "products.json",
        share=options.device.shared_prefix_attention,
        num_host_slots=memory.num_host_slots,
    )


def _info(
    options: EngineConfig,
    config: ModelConfig,
    checkpoint: Checkpoint,
    memory: MemoryPlan,
    quantization: str,
    dtype: torch.dtype,
    device: torch.device,
    limits: StepLimits,
    timer: PhaseTimer,
) -> EngineInfo:
    notes = list(memory.notes)
    if device.type == "cpu" and quantization.startswith("fp8"):
        notes.append("fp8 on a CPU is the reference of a GPU's kernels, exact and slow: int8 is the fast path.")
    if device.type == "cpu" and not native.available():
        notes.append(f"Compiled CPU kernels are off ({native.reason()}): this is the slower path.")
    return EngineInfo(
        model=checkpoint.name,
        architecture=config.architecture,
        device=torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"cpu, {torch.get_num_threads()} threads",
        dtype=str(dtype).removeprefix("torch."),
        quantization=quantization,
        vocab_size=config.vocab_size,
        max_model_len=memory.max_model_len,
        num_pages=memory.num_pages,
        page_size=memory.page_size,
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        memory=tuple(memory.table()),
        startup=tuple(timer.seconds),
        notes=tuple(notes),
        hidden_size=config.hidden_size,
    )
