"""The HTTP server: bytes to requests and back. It only translates; `octavo.validation` judges."""

from octavo.server.app import build_app
from octavo.server.serve import serve

__all__ = ["build_app", "serve"]
