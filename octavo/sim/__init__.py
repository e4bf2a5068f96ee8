"""An engine without a model, for tests and for measuring everything around an engine. It imports no torch."""

from octavo.sim.engine import SimEngine, SimOptions
from octavo.sim.model import write_sim_model

__all__ = ["SimEngine", "SimOptions", "write_sim_model"]
