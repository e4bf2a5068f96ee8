"""Weights of 4 bits in blocks of 32 along the input, each with a step and a least value; activations of 8 bits.

w[n, k] = step[n, b] q[n, k] + low[n, b], with q in [0, 15] and b = k // 32. GGUF's Q4_0, Q4_1 and Q4_K hold just that,
and their blocks are kept as they are. Activations have a scale for each token's block: a model has a few that are
hundreds of times the others, and would take the bits of all of theirs. Sums inside a block are exact integers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from octavo.errors import ConfigError
from octavo.kernels import native
from octavo.quant import BlockScheme, Form
from octavo.quant.int8 import quantize_rows
from octavo.quant.plain import Plain
from octavo.weights.source import FourBit

BLOCK = 32
_PANEL = 8
_BYTES = 160  # of a block of a panel: 8 outputs x 32 nibbles, 8 steps, 8 least values


class Int4Params(NamedTuple):
    """packed: uint8 [panels, K / 32, 160]; outputs: N; bias: float32 [N] or None."""

    packed: torch.Tensor
    outputs: int
    bias: torch.Tensor | None


def quantize_blocks(weight: torch.Tensor) -> FourBit:
    """float [N, K] → blocks from their least to their greatest value in 15 steps.

    Raises:
        ConfigError: K is no multiple of 32.
    """
    rows, columns = weight.shape
    if columns % BLOCK:
        raise ConfigError(
            f"--quantization int4 needs matrices whose input size is a multiple of {BLOCK}, and one has {columns}.",
            fix="Use --quantization int8.",
            param="quantization",
        )
    blocks = weight.float().view(rows, columns // BLOCK, BLOCK)
    low, high = blocks.aminmax(dim=2)
    low = low.half()
    step = ((high - low.float()) / 15).half()
    inverse = torch.where(step > 0, 1 / step.float(), 0.0)
    q = ((blocks - low.float()[:, :, None]) * inverse[:, :, None]).round_().clamp_(0, 15)
    return FourBit(q.to(torch.uint8).view(rows, columns), step, low)


def pack(blocks: FourBit) -> torch.Tensor:
    """The order that the kernel reads: uint8 [ceil(N / 8), K / 32, 160]; see int4_linear.c. Missing rows are 0."""
    q, step, low = blocks
    rows, columns = q.shape
    panels, count = -(-rows // _PANEL), columns // BLOCK
    out = native.weight_memory(panels * count * _BYTES).view(panels, count, _BYTES)
    if rows % _PANEL:
        q, step, low = (torch.cat([x, x.new_zeros(panels * _PANEL - rows, x.shape[1])]) for x in (q, step, low))
    halves = q.view(panels, _PANEL, count, 4, 2, 4).permute(4, 0, 2, 3, 1, 5)  # [half, panel, block, vector, lane, k]
    nibbles = out[:, :, :128].view(panels, count, 4, _PANEL, 4)
    torch.bitwise_or(halves[0], halves[1] << 4, out=nibbles)
    scales = torch.stack([step, low], dim=2).view(panels, _PANEL, count, 2).permute(0, 2, 3, 1)
    out[:, :, 128:] = scales.contiguous().view(torch.uint8).view(panels, count, 32)
    return out


def unpack(packed: torch.Tensor, outputs: int) -> FourBit:
    """What `pack` packed."""
    panels, count, _ = packed.shape
    nibbles = packed[:, :, :128].reshape(panels, count, 4, 1, _PANEL, 4)
    halves = torch.cat([nibbles & 15, nibbles >> 4], dim=3)  # [panel, block, vector, half, lane, k]
    q = halves.permute(0, 4, 1, 2, 3, 5).reshape(panels * _PANEL, count * BLOCK)
    scales = packed[:, :, 128:].contiguous().view(torch.float16).view(panels, count, 2, _PANEL)
    step, low = scales.permute(2, 0, 3, 1).reshape(2, panels * _PANEL, count).unbind(0)
    return FourBit(q[:outputs], step[:outputs], low[:outputs])


def dequantize(blocks: FourBit) -> torch.Tensor:
    """float32 [N, K]."""
    rows, columns = blocks.q.shape
    q = blocks.q.view(rows, columns // BLOCK, BLOCK).float()
    return (q * blocks.step.float()[:, :, None] + blocks.low.float()[:, :, None]).view(rows, columns)


class Int4(BlockScheme):
    """A compiled kernel where there is one; the torch reference unpacks a matrix at each use, which is slow."""

    form: Form = "plain"

    def make(
        self, weight: torch.Tensor, bias: torch.Tensor | None, *, device: torch.device, dtype: torch.dtype
    ) -> Int4Params:
        return self.make_from_blocks(quantize_blocks(weight), bias)

    def make_from_blocks(self, blocks: FourBit, bias: torch.Tensor | None) -> Int4Params:
        """The same from weights that are in blocks already."""
        return Int4Params(pack(blocks), len(blocks.q), None if bias is None else bias.float().contiguous())

    def apply(self, x: torch.Tensor, params: Int4Params) -> torch.Tensor:
        if native.available():
            return native.int4_linear(x, *params)
        q, scale = quantize_rows(x.view(len(x), x.shape[1] // BLOCK, BLOCK))
        rounded = (q.double() * scale).view(x.shape)
        y = (rounded @ dequantize(unpack(params.packed, params.outputs)).double().T).float()
        return y if params.bias is None else y + params.bias

    def rows(self, ids: torch.Tensor, params: Int4Params) -> torch.Tensor:
        if native.available() and ids.is_contiguous():
            return native.int4_rows(ids, params.packed)
        wanted = params.packed[ids // _PANEL]
        blocks = unpack(wanted, len(ids) * _PANEL)
        lanes = torch.arange(len(ids)) * _PANEL + ids % _PANEL
        return dequantize(FourBit(*(x[lanes] for x in blocks)))

    def plain(self) -> Plain:
        return Plain()
