"""The compiled kernels in both variants, on one thread and on two."""

from __future__ import annotations

import pytest
import torch

from octavo.kernels import native


@pytest.fixture(params=["avx2-1", "avx2-2", "plain-2"])
def variant(request):
    kind, threads = request.param.split("-")
    native.configure(avx2=kind == "avx2", threads=int(threads))
    if not native.available():
        pytest.skip(native.reason())
    yield request.param
    native.configure()


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(5)
