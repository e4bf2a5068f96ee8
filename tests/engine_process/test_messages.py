"""What goes over the socket: typed, whole, and never code."""

from __future__ import annotations

import inspect

import msgspec
import pytest

from octavo import errors
from octavo.config import EngineConfig
from octavo.engine import messages
from octavo.engine.messages import (
    Abort,
    AddRequest,
    EngineFailed,
    Failure,
    Heartbeat,
    Launch,
    Outputs,
    RequestFailed,
    Shutdown,
)
from octavo.request import (
    EngineRequest,
    EngineStats,
    Finished,
    PromptLogprobs,
    SampleLogprobs,
    SamplingParams,
    Started,
    StepOutputs,
    TokenLogprobs,
)

KINDS = [kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, errors.OctavoError)]


@pytest.mark.parametrize("kind", KINDS)
def test_errors_arrive_as_what_they_were(kind):
    sent = kind("what is wrong", fix="what to do")
    if not issubclass(kind, errors.OverloadedError):
        sent = kind("what is wrong", fix="what to do", param="seed", code="a_code")
    else:
        sent.retry_after = 7.5
    data = messages.encode(RequestFailed(5, Failure.of(sent)))
    got = messages.decode_from_engine(data).failure.error()
    assert type(got) is kind and vars(got) == vars(sent) and str(got) == str(sent) and got.exit_code == sent.exit_code


def test_other_exceptions_arrive_as_faults_of_ours():
    got = Failure.of(ZeroDivisionError("by zero")).error()
    assert type(got) is errors.OctavoError and got.code == "internal_error" and "ZeroDivisionError" in got.message


def test_a_failure_names_no_class_but_octavos():
    assert type(Failure("SystemExit", "c", "m").error()) is errors.OctavoError
    assert type(Failure("annotations", "c", "m").error()) is errors.OctavoError


def test_requests_and_outputs_come_through_whole():
    params = SamplingParams(
        n=3, seed=-(2**63), stop=("a", "é"), logit_bias={5: -1.5}, allowed_token_ids=(1, 2), max_tokens=7, logprobs=0
    )
    request = EngineRequest(
        handle=2**40, request_id="x", prompt_token_ids=[1, 2, 3], params=params, eos_token_ids=(2,), priority=-3,
        arrival_time=1.25, cache_salt="s",
    )  # fmt: skip
    scored = TokenLogprobs(3, float("-inf"), 9, [1, 2], [-0.5, -1.0])
    step = StepOutputs(
        [1, 1], [0, 1], [5, 6], [Finished(1, 0, "stop", 5)], [Started(1, 16, 2.5)], [SampleLogprobs(1, 1, scored)],
        [PromptLogprobs(1, 1, [scored])], EngineStats(num_running=2),
    )  # fmt: skip
    for message in (AddRequest(request), Abort(7), Abort(7, 1), Shutdown()):
        assert messages.decode_to_engine(messages.encode(message)) == message
    for message in (Outputs(step), Heartbeat(1.5, EngineStats()), EngineFailed(Failure.of(ValueError("x")), "trace")):
        assert messages.decode_from_engine(messages.encode(message)) == message


@pytest.mark.parametrize("data", [b"", b"\x80", b"cos\nsystem\n(S'true'\ntR.", b"\xc1", b"\x92\xa5Abort\xa1x"])
def test_other_bytes_are_refused(data):
    for decode in (messages.decode_to_engine, messages.decode_from_engine):
        with pytest.raises(msgspec.DecodeError):
            decode(data)


def test_the_config_travels_as_json():
    config = EngineConfig.of(model="a/b", max_num_seqs=3, seed=-1, quantization="int8", gpu_memory_utilization=0.5)
    launch = Launch("ipc:///x/engine", 5, True, config)
    assert msgspec.json.decode(msgspec.json.encode(launch), type=Launch) == launch
