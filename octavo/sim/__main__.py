"""`python -m octavo.sim OPTIONS`: the engine's process with a `SimEngine`; OPTIONS is `SimOptions` in JSON."""

from __future__ import annotations

import sys

import msgspec

from octavo.engine.process import main
from octavo.sim.engine import SimEngine, SimOptions

if __name__ == "__main__":
    options = msgspec.json.decode(sys.argv[1] if len(sys.argv) > 1 else "{}", type=SimOptions)
    sys.exit(main(lambda config, progress: SimEngine(config, progress, options)))
