"""Engines in processes of their own, simulated."""

from __future__ import annotations

import asyncio

import pytest

from octavo.async_llm import AsyncLLM
from octavo.config import EngineConfig
from octavo.sim import SimOptions, write_sim_model
from octavo.sim.serve import sim_client

PLAIN = SimOptions()


@pytest.fixture(scope="session")
def sim_folder(tmp_path_factory):
    return write_sim_model(tmp_path_factory.mktemp("sim"))


@pytest.fixture
def sim_llm(sim_folder):
    """Make an `AsyncLLM` over a simulated engine; it is not loaded yet."""

    def make(sim=PLAIN, progress=None, **options):
        config = EngineConfig.of(model="sim", tokenizer=str(sim_folder), **options)
        return AsyncLLM.of_config(config, client=sim_client(sim), progress=progress)

    return make


@pytest.fixture
def run():
    """Run a coroutine function to its end, within a time."""

    def run(main, seconds=20):
        async def bounded():
            async with asyncio.timeout(seconds):
                return await main()

        return asyncio.run(bounded())

    return run
