"""The memory that a GPU's steps have in common: sizes, inputs and outputs on the device, and pinned copies of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from octavo.kernels.triton.prepare_step import packed_size

RING = 3  # host buffers in turn: one being filled, one being copied, one being read


@dataclass(frozen=True, slots=True)
class DeviceShape:
    """The dimensions that buffers and kernels are made for."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    page_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    batch_invariant: bool = False

    @property
    def max_blocks(self) -> int:
        return -(-self.max_model_len // self.page_size)


class HostOutputs:
    """Pinned memory for one step's tokens and flags."""

    def __init__(self, count: int):
        self.tokens = torch.empty(count, dtype=torch.int32).pin_memory()
        self.failed = torch.empty(count, dtype=torch.int8).pin_memory()


class _Memory:
    """A tensor's bytes, as the CUDA array interface names them."""

    def __init__(self, tensor: torch.Tensor):
        self.__cuda_array_interface__ = {
            "shape": (tensor.nbytes,), "typestr": "|u1", "data": (tensor.data_ptr(), False), "version": 3
        }  # fmt: skip


def not_owning(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory, without keeping it: a graph's outputs are read before another graph of its pool is replayed,
    so that all of them may have one place."""
    return torch.as_tensor(_Memory(tensor), device=tensor.device).view(tensor.dtype).view(tensor.shape)


class StepBuffers:
    """The device tensors that a step's kernels read and write. Their addresses never change: graphs hold them."""

    def __init__(self, shape: DeviceShape, device: torch.device):
        seqs, tokens = shape.max_num_seqs, shape.max_num_batched_tokens

        def zeros(*size: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
            return torch.zeros(*size, dtype=dtype, device=device)

        most_pages = seqs * 2 + -(-tokens // shape.page_size) + shape.max_blocks * 4 + (1 << 16)
        self.packed = zeros(packed_size(seqs, tokens, seqs * 4, most_pages))
        self.block_table = zeros(seqs + 1, shape.max_blocks)
        self.last_token = zeros(seqs + 1)
        self.token_ids = zeros(tokens, dtype=torch.int64)
        self.positions = zeros(tokens)
        self.slots = zeros(tokens, dtype=torch.int64)
        self.seq_lens, self.query_start = zeros(seqs), zeros(seqs + 1)
        self.batch_table = zeros(seqs, shape.max_blocks)
        self.samples = zeros(3, seqs)  # rows, positions, and where in the step's tokens
        self.tokens, self.ranks = zeros(seqs), zeros(seqs)
        self.logprobs, self.failed = zeros(seqs, dtype=torch.float32), zeros(seqs, dtype=torch.int8)
        self.host_packed = [torch.zeros_like(self.packed, device="cpu").pin_memory() for _ in range(RING)]
        self.host_samples = [torch.zeros_like(self.samples, device="cpu").pin_memory() for _ in range(RING)]
        self.host_outputs = [HostOutputs(seqs) for _ in range(RING)]
