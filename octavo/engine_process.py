"""`python -m octavo.engine_process`: a model's engine in its own process, with the tokenizer that grammars need."""

from __future__ import annotations

import sys

from octavo.config import EngineConfig
from octavo.engine.core import Engine
from octavo.engine.phases import Progress
from octavo.engine.process import main
from octavo.frontend.grammar import encoded_vocabulary
from octavo.frontend.load import open_tokenizer


def model_engine(config: EngineConfig, progress: Progress) -> Engine:
    """The engine of a model; it reads the tokenizer only when the first grammar comes."""
    return Engine(config, progress, lambda vocab_size: encoded_vocabulary(open_tokenizer(config), vocab_size))


if __name__ == "__main__":
    sys.exit(main(model_engine))
