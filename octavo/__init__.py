"""Octavo serves large language models from paged memory."""

__version__ = "0.1.0"
