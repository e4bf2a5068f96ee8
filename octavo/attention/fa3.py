"""FlashAttention-3 (Shah et al. 2024, arXiv 2407.08608) for prompts, from the wheel `tokenspeed-fa3`: Hopper only.

The wheel registers operators with torch; nothing of it is imported before a GPU that can use it was seen.
"""

from __future__ import annotations

import importlib

import torch

from octavo.errors import ConfigError

_HEAD_DIMS = (64, 128, 192, 256)  # what the wheel was built for; others are padded at a cost


def why_not(device: torch.device, head_dim: int, kv_dtype: torch.dtype) -> str | None:
    """Why FA3 cannot serve these layers here; None where it can. Loads the wheel where all else holds."""
    if device.type != "cuda" or torch.version.hip is not None:
        return "it runs on NVIDIA GPUs only"
    if torch.cuda.get_device_capability(device)[0] != 9:
        return f"it is made for Hopper, not for {torch.cuda.get_device_name(device)}"
    if head_dim not in _HEAD_DIMS:
        return f"it has no kernel for heads of {head_dim}"
    if kv_dtype not in (torch.bfloat16, torch.float16):
        return f"it reads no {str(kv_dtype).removeprefix('torch.')} cache beside wider queries"
    try:
        importlib.import_module("flash_attn_3._C")
    except (ImportError, OSError) as error:
        return f"the package tokenspeed-fa3 is not there ({error}); pip install 'octavo[fa3]'"
    return None


class Fa3Extend:
    """Prompt attention over paged keys and values, from one row of a step on: `PagedExtend`'s work, FA3's kernel.

    `begin` sets the step's rows, the call computes one layer.
    It was never slower than the Triton kernel, for chunks of 32 to 4,096 tokens (benchmarks/gpu_kernels.py).
    """

    def __init__(self, *, num_heads: int, num_kv_heads: int, head_dim: int, page_size: int):
        self._num_heads, self._num_kv_heads = num_heads, num_kv_heads
        self._head_dim, self._page_size = head_dim, page_size
        self._first_token, self._longest = 0, 0
        self._starts = self._seq_lens = self._table = self._metadata = torch.empty(0)

    def begin(
        self,
        query_start_loc: torch.Tensor,
        seq_lens: torch.Tensor,
        block_table: torch.Tensor,
        *,
        first_row: int,
        end_row: int,
        longest: int,
        dtype: torch.dtype,
    ) -> None:
        """Plan a step whose rows [first_row, end_row) are to be computed; those before have one query token each.

        Args:
            query_start_loc: int32 [R + 1]; seq_lens: int32 [R], queries included; block_table: int32 [R, pages].
            longest: query tokens of the longest row.
            dtype: of queries, keys and values.
        """
        self._first_token, self._longest = first_row, longest
        self._starts = query_start_loc[first_row : end_row + 1] - first_row
        self._seq_lens, self._table = seq_lens[first_row:end_row], block_table[first_row:end_row]
        self._metadata = torch.ops.flash_attn_3.get_scheduler_metadata(
            len(self._seq_lens),
            longest,
            self._table.shape[1] * self._page_size,
            self._num_heads,
            self._num_kv_heads,
            self._head_dim,
            self._head_dim,
            dtype,
            self._seq_lens,
            cu_seqlens_q=self._starts,
            page_size=self._page_size,
            is_causal=True,
            num_splits=1,
        )

    def __call__(
        self, q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, scale: float, out: torch.Tensor
    ) -> None:
        """Attend and write `out`.

        Args:
            q, out: [T, num_heads, head_dim] of the whole step; tokens of other rows are left as they are.
            k_cache, v_cache: [pages, kv heads, page_size, head_dim].
        """
        torch.ops.flash_attn_3.fwd(
            q[self._first_token :],
            k_cache.transpose(1, 2),
            v_cache.transpose(1, 2),
            out=out[self._first_token :],
            cu_seqlens_q=self._starts,
            seqused_k=self._seq_lens,
            max_seqlen_q=self._longest,
            page_table=self._table,
            softmax_scale=scale,
            is_causal=True,
            scheduler_metadata=self._metadata,
            num_splits=1,
        )


class Fa3Fresh:
    """Attention of prompts' beginnings, which have no keys but this step's: read where they were made, not from pages.

    For pages of e4m3, which FA3 cannot read beside wider queries: so most prompts have its speed all the same, and
    exact keys. From pages of 16 bits it is as fast (benchmarks/gpu_fused.py).
    """

    def __init__(self, *, num_heads: int, num_kv_heads: int, head_dim: int):
        self._num_heads, self._num_kv_heads, self._head_dim = num_heads, num_kv_heads, head_dim
        self._first_token, self._longest = 0, 0
        self._starts = torch.empty(0)

    def begin(self, query_start_loc: torch.Tensor, *, first_row: int, first_token: int, longest: int) -> None:
        """Plan a step whose rows from `first_row`, and so tokens from `first_token`, to its end are to be computed.

        Args:
            query_start_loc: int32 [R + 1].
            longest: query tokens of the longest of the rows.
        """
        self._first_token, self._longest = first_token, longest
        self._starts = query_start_loc[first_row:] - first_token

    def __call__(self, q: torch.Tensor, qkv: torch.Tensor, scale: float, out: torch.Tensor) -> None:
        """Attend and write `out`.

        Args:
            q, out: [T, num_heads, head_dim] of the whole step; tokens before the first are left as they are.
            qkv: [T, (num_heads + 2 num_kv_heads) head_dim]; its keys are rotated.
        """
        heads = qkv[self._first_token :].unflatten(1, (-1, self._head_dim))
        _, keys, values = heads.split([self._num_heads, self._num_kv_heads, self._num_kv_heads], 1)
        torch.ops.flash_attn_3.fwd(
            q[self._first_token :],
            keys,
            values,
            out=out[self._first_token :],
            cu_seqlens_q=self._starts,
            cu_seqlens_k=self._starts,
            max_seqlen_q=self._longest,
            max_seqlen_k=self._longest,
            softmax_scale=scale,
            is_causal=True,
            num_splits=1,
        )


def choose_fa3_fresh(
    backend: str, device: torch.device, kv_dtype: torch.dtype, *, num_heads: int, num_kv_heads: int, head_dim: int
) -> Fa3Fresh | None:
    """The same for prompts' beginnings, where FA3 cannot read the pages; None is the way of all other rows."""
    if backend == "triton" or kv_dtype != torch.float8_e4m3fn or why_not(device, head_dim, torch.bfloat16) is not None:
        return None
    return Fa3Fresh(num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim)


def choose_fa3(
    backend: str,
    device: torch.device,
    kv_dtype: torch.dtype,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    page_size: int,
) -> Fa3Extend | None:
    """FA3 for what --attention-backend asks; None is the Triton kernel.

    Raises:
        ConfigError: fa3 was asked for by name and cannot be.
    """
    if backend == "triton":
        return None
    reason = why_not(device, head_dim, kv_dtype)
    if reason is None:
        return Fa3Extend(
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            page_size=page_size,
        )
    if backend == "fa3":
        raise ConfigError(
            f"--attention-backend fa3 cannot be had here: {reason}.",
            fix="Leave the flag away: auto takes what there is.",
            param="attention_backend",
        )
    return None
