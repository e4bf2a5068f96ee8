"""An engine that dies or hangs is started again: what waited is kept, what had begun ends with an error."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import psutil
import pytest

from octavo.async_llm import AsyncLLM
from octavo.config import EngineConfig
from octavo.engine.restart import RestartingClient, RestartPolicy
from octavo.errors import EngineDeadError, OverloadedError
from octavo.request import SamplingParams
from octavo.sim import SimOptions
from octavo.sim.serve import sim_client
from tests.patience import BUSY

SLOW = SimOptions(step_seconds=0.02)
QUICK = RestartPolicy(first_pause=0.05)


@pytest.fixture
def restarting_llm(sim_folder):
    def make(sim=SLOW, policy=QUICK, **options):
        config = EngineConfig.of(model="sim", tokenizer=str(sim_folder), **options)
        return AsyncLLM.of_config(config, client=lambda c: RestartingClient(lambda: sim_client(sim)(c), policy))

    return make


async def until(condition, seconds=10.0 * BUSY):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


def ask(llm, prompt, max_tokens, **options):
    async def main():
        result = None
        async for output in llm.generate(prompt, SamplingParams(max_tokens=max_tokens), **options):
            result = output
        return result.outputs[0].text

    return asyncio.create_task(main())


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
def test_what_waits_is_answered_by_the_next_engine(restarting_llm, run, how):
    async def main():
        async with restarting_llm(max_num_seqs=2) as llm:
            begun = [ask(llm, "ab", 3000) for _ in range(2)]
            await until(lambda: llm.stats.num_running == 2)
            waiting = [ask(llm, f"w{number}", 4) for number in range(5)]
            await until(lambda: llm.num_open == 7)
            first = llm._client.pid
            os.kill(first, how)
            killed = time.monotonic()
            for task in begun:
                with pytest.raises(EngineDeadError, match=how.name):
                    await task
            assert time.monotonic() - killed < 1.0 * BUSY
            assert llm.state == "restarting" and llm.num_open == 5
            with pytest.raises(OverloadedError, match="started again"):
                await ask(llm, "new", 2)
            assert await asyncio.gather(*waiting) == [f"w{number}w{number}" for number in range(5)]
            assert llm.state == "ready" and llm.num_restarts == 1
            assert llm._client.pid != first and not psutil.pid_exists(first)
            assert await ask(llm, "xy", 4) == "xyxy"
            await until(lambda: llm.stats.num_running == 0)

    run(main)


def test_a_request_of_several_prompts_is_lost_if_any_had_begun(restarting_llm, run):
    async def main():
        async with restarting_llm(max_num_seqs=1) as llm:
            requests = [await llm.completion_request(p, SamplingParams(max_tokens=2000)) for p in ("ab", "cd")]
            stream = llm.submit(requests)
            await until(lambda: llm.stats.num_running == 1)
            llm._client.kill()
            with pytest.raises(EngineDeadError):
                await stream.finish()
            await until(lambda: llm.state == "ready")
            assert llm.num_open == 0 and await ask(llm, "z", 2) == "zz"
            await until(lambda: llm.stats.num_running == 0 and llm.stats.num_waiting == 0)

    run(main)


def test_what_ends_while_the_engine_is_away_is_not_given_to_the_next(restarting_llm, run):
    async def main():
        async with restarting_llm(max_num_seqs=1) as llm:
            begun = ask(llm, "ab", 3000)
            await until(lambda: llm.stats.num_running == 1)
            gone, stays = ask(llm, "gone", 3), ask(llm, "st", 4)
            await until(lambda: llm.num_open == 3)
            llm._client.kill()
            await until(lambda: llm.state == "restarting")
            gone.cancel()
            assert await stays == "stst"
            await asyncio.gather(begun, gone, return_exceptions=True)
            await until(lambda: llm.stats.num_waiting == 0 and llm.stats.num_running == 0)
            assert llm.stats.prompt_tokens == 2

    run(main)


def test_a_request_is_not_given_to_a_third_engine(restarting_llm, run):
    """It may be what they die of."""

    async def main():
        async with restarting_llm(max_num_seqs=1) as llm:
            tasks = [ask(llm, "ab", 3000), ask(llm, "cd", 3000)]
            await until(lambda: llm.stats.num_running == 1)
            waits = ask(llm, "ef", 3000)
            await until(lambda: llm.num_open == 3)
            llm._client.kill()
            await until(lambda: llm.num_restarts == 1 and llm.state == "ready")
            later = ask(llm, "gh", 4)
            await until(lambda: llm.num_open == 3 and llm.stats.num_running == 1)
            llm._client.kill()
            for task in (*tasks, waits):
                with pytest.raises(EngineDeadError):
                    await task
            assert await later == "ghgh"

    run(main)


def test_after_so_many_restarts_it_is_the_end(restarting_llm, run):
    async def main():
        policy = RestartPolicy(max_restarts=2, first_pause=0.02)
        async with restarting_llm(policy=policy) as llm:
            for number in (1, 2):
                llm._client.kill()
                await until(lambda number=number: llm.num_restarts == number and llm.state == "ready")
            task = ask(llm, "ab", 3000)
            await until(lambda: llm.stats.num_running == 1)
            llm._client.kill()
            with pytest.raises(EngineDeadError, match="started again 2 times"):
                await task
            assert llm.state == "dead"
            with pytest.raises(EngineDeadError):
                await ask(llm, "ab", 2)

    run(main)


def test_deaths_long_ago_do_not_count(restarting_llm, run):
    async def main():
        policy = RestartPolicy(max_restarts=1, window=0.01, first_pause=0.02)
        async with restarting_llm(policy=policy) as llm:
            for number in (1, 2, 3):
                llm._client.kill()
                await until(lambda number=number: llm.num_restarts == number and llm.state == "ready")

    run(main)


def test_a_fault_that_comes_every_time_ends_in_bounded_time(restarting_llm, run):
    async def main():
        sim = SimOptions(step_seconds=0.01, fault="raise", fault_step=3)
        async with restarting_llm(sim=sim, policy=RestartPolicy(max_restarts=2, first_pause=0.02)) as llm:
            while llm.state != "dead":
                if llm.state == "ready":
                    with pytest.raises((EngineDeadError, OverloadedError)):
                        await ask(llm, "ab", 50)
                await asyncio.sleep(0.01)
            assert "the simulated step failed" in llm.error.message and llm.num_restarts == 2

    run(main)


@pytest.mark.parametrize("fault", ["hang", "stop at rest"])
def test_an_engine_without_a_sign_of_life_is_ended_and_replaced(restarting_llm, run, fault, monkeypatch):
    monkeypatch.setattr("octavo.engine.restart.LEAST_STEP_TIMEOUT", 1.5)
    sim = SimOptions(step_seconds=0.01, fault="hang" if fault == "hang" else "", fault_step=10)

    async def main():
        async with restarting_llm(sim=sim, policy=RestartPolicy(first_pause=0.02, step_timeout=1.5)) as llm:
            llm.hung_seconds = 0.4
            first = llm._client.pid
            task = ask(llm, "ab", 3000) if fault != "stop at rest" else None
            if fault != "hang":
                os.kill(first, signal.SIGSTOP)
            start = time.monotonic()
            if task is not None:
                await until(lambda: llm.state == "hung")
                with pytest.raises(EngineDeadError, match="no sign of life"):
                    await task
            await until(lambda: llm.num_restarts == 1 and llm.state == "ready")
            assert 1.0 < time.monotonic() - start < 4.0 * BUSY
            assert not psutil.pid_exists(first)
            if fault != "hang":
                assert await ask(llm, "xy", 4) == "xyxy"

    run(main)


def test_slow_but_steady_steps_are_left_alone(restarting_llm, run, monkeypatch):
    monkeypatch.setattr("octavo.engine.restart.LEAST_STEP_TIMEOUT", 1.0)

    async def main():
        async with restarting_llm(sim=SimOptions(step_seconds=0.3), policy=RestartPolicy(step_timeout=1.0)) as llm:
            assert await ask(llm, "ab", 5) == "ababa"
            await asyncio.sleep(1.2)  # and so is one that rests
            assert llm.num_restarts == 0

    run(main)


def test_closing_while_the_engine_is_away_leaves_nothing(restarting_llm, run):
    async def main():
        llm = restarting_llm(policy=RestartPolicy(first_pause=30.0))
        async with llm:
            first = llm._client.pid
            task = ask(llm, "ab", 3000)
            await until(lambda: llm.stats.num_running == 1)
            llm._client.kill()
            await until(lambda: llm.state == "restarting")
            await asyncio.gather(task, return_exceptions=True)
        assert llm.state == "closed" and not psutil.pid_exists(first)

    others = psutil.Process().children()  # of servers that tests before this one share
    run(main)
    assert set(psutil.Process().children()) <= set(others)


def test_an_engine_that_cannot_start_is_not_tried_again(restarting_llm, run):
    async def main():
        llm = restarting_llm(sim=SimOptions(fault="startup"))
        start = time.monotonic()
        with pytest.raises(Exception, match="corrupt"):
            await llm.load()
        assert llm.num_restarts == 0 and time.monotonic() - start < 5 * BUSY
        await llm.close()

    run(main)
