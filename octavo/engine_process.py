"""`python -m octavo.engine_process`: a model's engine in its own process, with the tokenizer that grammars need."""

# ruff: noqa: E402 - the cycle collector rests before anything else is imported

from __future__ import annotations

import gc
import sys

gc.disable()  # it takes a fifth of the time in which torch is imported; `octavo.garbage.settle` has it back

from octavo.config import EngineConfig
from octavo.engine.core import Engine
from octavo.engine.phases import Progress, process_age
from octavo.engine.process import main
from octavo.frontend.grammar import encoded_vocabulary
from octavo.frontend.load import open_tokenizer


def model_engine(config: EngineConfig, progress: Progress) -> Engine:
    """The engine of a model; it reads the tokenizer only when the first grammar comes."""
    age = process_age()
    before = () if age is None else (("import torch and the engine", age),)
    return Engine(config, progress, lambda vocab_size: encoded_vocabulary(open_tokenizer(config), vocab_size), before)


if __name__ == "__main__":
    sys.exit(main(model_engine))
