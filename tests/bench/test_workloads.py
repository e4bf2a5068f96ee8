"""The shared workloads are the same ids, for every engine and for ever."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from octavo.bench.workloads import WORKLOADS, BenchRequest, fit_vocabulary, fixed, take

# Of the definitions that peers were measured with: (requests, prompt tokens, output tokens, sha256 of all of it).
FROZEN = {
    "single_128_256": (1, 128, 256, "6902546fd3786d6925dfbecc8a9c7e1e162b9b4b86e86b169a7a361201ba3454"),
    "sharegpt_1000": (1000, 159780, 201734, "01556c529e1638cc2508d7e55c2cbfd9315c198ec2e34c07b454587bf8216722"),
    "in512_out512_x512": (512, 262144, 262144, "00d108f17b164c311697faf9d275ee7c850a9b0276da2bf48e1134a914073a94"),
    "prefill_4096_out8_x64": (64, 262144, 512, "54a4722ebfe4e8f0013e1b55b6bba4171890d4406d9b8cafc404ebcb000beafe"),
    "prefix_16x32": (512, 1114112, 65536, "dbaf10551666e52845e2018b3a8630f8a00c4409374f2c1f3fdaddd47b32b219"),
}


@pytest.mark.parametrize("name", FROZEN)
def test_ids_are_those_the_peers_were_measured_with(name):
    workload = WORKLOADS[name]()
    digest = hashlib.sha256()
    for request in workload:
        ids = request.prompt_token_ids
        digest.update(np.asarray([len(ids), request.output_len, *ids], "<i8").tobytes())
    count, inputs, outputs, expected = FROZEN[name]
    assert len(workload) == count
    assert sum(len(request.prompt_token_ids) for request in workload) == inputs
    assert sum(request.output_len for request in workload) == outputs
    assert digest.hexdigest() == expected


def test_every_workload_is_frozen():
    assert set(FROZEN) == set(WORKLOADS)


def test_small_vocabulary_takes_ids_modulo_and_says_so():
    workload = [BenchRequest([1000, 127_999], 4), BenchRequest([5], 1)]
    fitted, changed = fit_vocabulary(workload, 49_152)
    assert changed
    assert fitted == [BenchRequest([1000, 127_999 % 49_152], 4), BenchRequest([5], 1)]
    assert fit_vocabulary(workload, 128_000) == (workload, False)


def test_limit_takes_the_first_requests():
    workload = fixed(5, 3, 2)
    assert take(workload, 2) == workload[:2]
    assert take(workload, None) == workload


def test_random_prompts_stay_below_the_vocabulary():
    ids = [token for request in fixed(20, 50, 1, vocab_size=300) for token in request.prompt_token_ids]
    assert min(ids) >= 0
    assert max(ids) < 300
