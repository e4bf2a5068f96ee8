"""Sums over a profile's kernels, and the refusal where there is no GPU."""

from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner

from octavo.bench.profile import KINDS, kind_of, profile, split
from octavo.errors import ConfigError


def test_kinds():
    assert kind_of("nvjet_sm90_tst_128x8_64x12_2x1_v_bz_TNT") == "gemm"
    assert kind_of("void cublasLt::splitKreduce_kernel<32>") == "gemm"
    assert kind_of("skinny_linear_kernel") == "gemm"
    assert kind_of("decode_kernel") == kind_of("extend_kernel") == "attention"
    assert kind_of("draw_blocks_kernel") == kind_of("process_logits_kernel") == "sampling"
    assert kind_of("Memcpy HtoD (Pinned -> Device)") == "copies"
    assert kind_of("rms_norm_kernel") == "glue"


def test_split_counts_time_once_and_idle_between():
    us = 1000
    found = split(
        [
            ("rms_norm_kernel", 300 * us, 100 * us),  # after 100 us of nothing
            ("decode_kernel", 0, 150 * us),
            ("nvjet_a", 100 * us, 100 * us),  # half of it beside the one before
        ]
    )
    assert found["span_ms"] == pytest.approx(0.4)
    assert found["ms"] == pytest.approx(
        dict.fromkeys(KINDS, 0.0) | {"gemm": 0.1, "attention": 0.15, "glue": 0.1, "idle": 0.1}
    )
    assert found["kernels"][0]["name"] == "decode_kernel"
    assert split([])["span_ms"] == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_before_loading():
    with pytest.raises(ConfigError, match="needs a GPU"):
        profile(lambda: None)
    from octavo.cli.bench_throughput import throughput

    result = CliRunner().invoke(throughput, ["no-such-model", "--profile", "trace.json.gz"])
    assert isinstance(result.exception, ConfigError)
    assert "GPU" in str(result.exception)
