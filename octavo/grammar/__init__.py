"""Structured output: what an answer must look like, checked, compiled, and kept token by token."""
