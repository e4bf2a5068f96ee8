"""Corrections to the interpreter of Triton 3.6 to 3.9, so that it computes what a GPU does."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton.language as tl
import triton.runtime.interpreter as interpreter

_TORCH = {
    tl.float32: torch.float32,
    tl.float16: torch.float16,
    tl.bfloat16: torch.bfloat16,
    tl.float8e4nv: torch.float8_e4m3fn,
}
_BITS = {8: np.uint8, 16: np.uint16, 32: np.uint32}


def apply() -> None:
    """Scalars of one element convert under numpy 2.4; conversions round to nearest even; bfloat16 multiplies; masks
    are boolean."""
    _keep_masks_boolean()
    patch_tensor = interpreter._patch_lang_tensor
    convert_float, create_dot = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot

    def patch_scalars(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    def convert(values: np.ndarray, source: Any, target: Any, rounding: Any) -> np.ndarray:
        if source not in _TORCH or target not in _TORCH:
            return convert_float(values, source, target, rounding)
        bits = np.ascontiguousarray(values).view(_BITS[source.primitive_bitwidth])
        result = torch.from_numpy(bits).view(_TORCH[source]).to(_TORCH[target])
        return result.view(torch.uint8).numpy().view(_BITS[target.primitive_bitwidth]).reshape(values.shape)

    def widen(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return interpreter.TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return create_dot(self, widen(a), widen(b), *rest)

    interpreter._patch_lang_tensor = patch_scalars
    interpreter._convert_float = convert
    interpreter.InterpreterBuilder.create_dot = dot


def _keep_masks_boolean() -> None:
    """3.9 gives the results of comparisons their operands' type, and then refuses them as masks."""
    builder = interpreter.InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store

    def boolean(mask: Any) -> Any:
        values = mask if isinstance(mask, np.ndarray) else mask.data  # those of tensor descriptors are bare
        return interpreter.TensorHandle((values & 1).astype(np.bool_), tl.int1)

    def masked_load(self: Any, pointers: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        return load(self, pointers, boolean(mask), *rest, **named)

    def masked_store(self: Any, at: Any, value: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        return store(self, at, value, boolean(mask), *rest, **named)

    builder.create_masked_load, builder.create_masked_store = masked_load, masked_store
