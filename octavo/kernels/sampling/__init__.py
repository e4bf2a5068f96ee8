"""Random numbers and choices of the sampler."""
