"""`AsyncLLM` over an engine in a process of its own."""

from __future__ import annotations

import asyncio
import inspect
import os
import stat
import threading
import time

import pytest

from octavo.errors import ContextLengthError, EngineDeadError, InvalidRequestError, ModelFileError, OverloadedError
from octavo.request import EngineRequest, SamplingParams
from octavo.sim import SimOptions
from tests.patience import BUSY

SLOW = SimOptions(step_seconds=0.01)
ALL = SamplingParams(max_tokens=2000)


async def until(condition, seconds=2.0 * BUSY):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


def test_outputs_grow_until_they_are_finished(sim_llm, run):
    async def main():
        async with sim_llm(SLOW) as llm:
            return [out async for out in llm.generate("héllo ", SamplingParams(max_tokens=10), request_id="mine")]

    outputs = run(main)
    texts = [output.outputs[0].text for output in outputs]
    assert texts == sorted(texts, key=len) and texts[-1] == "héllo hé"
    assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]
    assert len(outputs) > 3 and outputs[0].request_id == "mine" and outputs[0].prompt == "héllo "
    assert outputs[-1].outputs[0].finish_reason == "length" and outputs[-1].metrics.time_to_first_token > 0


def test_many_requests_at_once_get_each_their_own(sim_llm, run):
    async def one(llm, number):
        prompt = f"prompt number {number}, "
        async for output in llm.generate(prompt, SamplingParams(max_tokens=len(prompt), n=2)):
            last = output
        return [sample.text for sample in last.outputs] == [prompt, prompt]

    async def main():
        async with sim_llm(max_num_seqs=8) as llm:
            return await asyncio.gather(*(one(llm, number) for number in range(40)))

    assert all(run(main))


def test_a_conversation(sim_llm, run):
    async def main():
        async with sim_llm() as llm:
            messages = [{"role": "user", "content": "hi"}]
            return [out async for out in llm.chat(messages, SamplingParams(max_tokens=8))]

    assert run(main)[-1].outputs[0].text == "user: hi"


@pytest.mark.parametrize("way", ["break", "cancel", "abort"])
def test_leaving_a_request_frees_its_pages(sim_llm, run, way):
    async def main():
        async with sim_llm(SLOW) as llm:
            stream = llm.generate("abc", ALL, request_id="one")
            await anext(stream)
            await until(lambda: llm.stats.num_running == 1)
            if way == "break":
                await stream.aclose()
            elif way == "cancel":
                task = asyncio.ensure_future(anext(stream))
                await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            else:
                assert llm.abort("one") and not llm.abort("one") and not llm.abort("other")
                with pytest.raises(StopAsyncIteration):
                    while True:
                        await anext(stream)
            assert llm.num_open == 0
            await until(lambda: llm.stats.num_running == 0, 1)
            assert llm.stats.num_free_pages == llm.stats.num_pages

    run(main)


def test_bad_requests_raise_and_nothing_is_sent(sim_llm, run):
    async def main():
        async with sim_llm() as llm:
            for prompt, params, error in (
                ("x" * 5000, ALL, ContextLengthError),
                ([320], ALL, InvalidRequestError),
                ("x", SamplingParams(temperature=-1), InvalidRequestError),
            ):
                with pytest.raises(error):
                    await anext(llm.generate(prompt, params))
            assert llm.num_open == 0

    run(main)


def test_an_id_that_is_in_use_is_refused(sim_llm, run):
    async def main():
        async with sim_llm(SLOW) as llm:
            first = llm.generate("abc", ALL, request_id="one")
            await anext(first)
            with pytest.raises(InvalidRequestError, match="id"):
                await anext(llm.generate("abc", ALL, request_id="one"))
            await first.aclose()
            assert await anext(llm.generate("abc", ALL, request_id="one"))

    run(main)


def test_a_full_queue_is_refused_here_already(sim_llm, run):
    async def main():
        async with sim_llm(SLOW, max_num_seqs=1, max_num_queued_reqs=1) as llm:
            first = llm.generate("abc", ALL)
            await anext(first)
            second = asyncio.ensure_future(anext(llm.generate("abc", ALL)))
            await asyncio.sleep(0)
            with pytest.raises(OverloadedError) as refused:
                await anext(llm.generate("abc", ALL))
            assert refused.value.retry_after >= 1
            second.cancel()
            await first.aclose()

    run(main)


def test_what_the_engine_refuses_ends_that_request_alone(sim_llm, run):
    async def main():
        async with sim_llm() as llm:
            long = EngineRequest(handle=77, request_id="long", prompt_token_ids=[1] * 5000, params=ALL)
            stream = llm.submit([long])
            with pytest.raises(ContextLengthError):
                await stream.next()
            assert llm.num_open == 0
            assert await anext(llm.generate("abc", ALL))

    run(main)


def test_a_start_that_fails_raises_what_the_engine_raised(sim_llm, run):
    async def main():
        async with sim_llm(SimOptions(fault="startup")):
            pass

    with pytest.raises(ModelFileError) as failed:
        run(main)
    error = failed.value
    assert (error.message, error.fix, error.param) == (
        "The simulated model is corrupt.",
        "Choose another fault.",
        "model",
    )
    assert error.exit_code == 4 and "Traceback" in error.__notes__[0]


def test_a_child_that_dies_while_loading_is_noticed(sim_llm, run):
    async def main():
        llm = sim_llm(SimOptions(startup_seconds=30))
        loading = asyncio.ensure_future(llm.load())
        await until(lambda: llm.loading[1] > 0 or llm.loading[0] == "pretend to load" or llm._client.pid, 5)
        llm._client._process.kill()
        start = time.monotonic()
        with pytest.raises(EngineDeadError, match="SIGKILL"):
            await loading
        assert time.monotonic() - start < 1 * BUSY and llm.state == "dead"

    run(main)


def test_progress_is_told_while_loading(sim_llm, run):
    told = []

    async def main():
        async with sim_llm(SimOptions(startup_seconds=0.1), progress=lambda *phase: told.append(phase)):
            pass

    run(main)
    assert [round(fraction, 1) for _, fraction in told] == [round(0.1 * i, 1) for i in range(11)]


def test_closing_while_it_loads_ends_the_child(sim_llm, run):
    async def main():
        llm = sim_llm(SimOptions(startup_seconds=30))
        loading = asyncio.ensure_future(llm.load())
        await until(lambda: llm._client.pid)
        pid = llm._client.pid
        start = time.monotonic()
        await llm.close()
        with pytest.raises(EngineDeadError):
            await loading
        assert time.monotonic() - start < 2 * BUSY
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    run(main)


def test_nothing_is_left_after_closing(sim_llm, run):
    async def main():
        llm = sim_llm(SimOptions(startup_seconds=0.1))
        loading = asyncio.ensure_future(llm.load())
        await until(lambda: llm._client.pid)
        folder, pid = llm._client._channel._folder, llm._client.pid
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        await loading
        assert not folder.exists()  # even a kill leaves nothing behind
        try:
            assert await anext(llm.generate("abc", ALL))
            with_engine = len(os.listdir("/proc/self/fd"))
        finally:
            await llm.close()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        await llm.close()
        with pytest.raises(EngineDeadError):
            await anext(llm.generate("abc", ALL))
        return with_engine - len(os.listdir("/proc/self/fd"))

    run(main)
    assert run(main) > 3


def test_closing_ends_what_is_open(sim_llm, run):
    async def main():
        llm = sim_llm(SLOW)
        await llm.load()
        stream = llm.generate("abc", ALL)
        await anext(stream)
        await llm.close()
        with pytest.raises(EngineDeadError, match="closed"):
            while True:
                await anext(stream)

    run(main)


def test_a_client_that_starts_it_from_another_thread_may_let_that_thread_wait(sim_llm, run):
    """The kernel's "die with my parent" means the parent's thread; it must not be asked for here."""
    texts = []

    def work():
        async def main():
            async with sim_llm() as llm:
                texts.extend([out.outputs[0].text async for out in llm.generate("abc", SamplingParams(max_tokens=6))])

        run(main)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(20)
    assert texts[-1] == "abcabc"


def test_the_front_end_imports_no_torch():
    import subprocess
    import sys

    code = "import sys, octavo.async_llm, octavo.server, octavo.sim; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_generate_and_chat_are_async_iterators():
    from octavo import AsyncLLM

    assert inspect.isasyncgenfunction(AsyncLLM.generate) and inspect.isasyncgenfunction(AsyncLLM.chat)
