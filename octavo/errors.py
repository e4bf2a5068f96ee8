"""Errors a user meets. Each says what is wrong, why, and what to do; a server turns each into one HTTP reply."""

from __future__ import annotations


class OctavoError(Exception):
    """A problem whose cause and remedy we know.

    Attributes:
        code: stable machine-readable name, as in the error reference (`context_length_exceeded`).
        fix: what the user can do, one sentence; empty where nothing can be done.
        param: the request field or flag at fault, if one is.
        status: the HTTP status a server answers with.
        exit_code: the process exit status the CLI ends with.
    """

    code = "internal_error"
    status = 500
    exit_code = 1

    def __init__(self, message: str, *, fix: str = "", param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.message = message
        self.fix = fix
        self.param = param
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        return f"{self.message} {self.fix}".strip()


class InvalidRequestError(OctavoError):
    """A request that cannot be served as written (HTTP 400)."""

    code = "invalid_value"
    status = 400


class ContextLengthError(InvalidRequestError):
    """Prompt and requested output do not fit the model's context."""

    code = "context_length_exceeded"


class ModelNotFoundError(OctavoError):
    """No model of that name, in any place that was asked."""

    code = "model_not_found"
    status = 404
    exit_code = 3


class ConfigError(OctavoError):
    """Flags or configuration that cannot hold together."""

    code = "invalid_config"
    status = 400
    exit_code = 2


class ModelFileError(OctavoError):
    """A model file that is corrupt, truncated, or of a kind that is not supported."""

    code = "invalid_model_file"
    exit_code = 4


class OverloadedError(OctavoError):
    """The queue is full (HTTP 503); `retry_after` is in seconds."""

    code = "overloaded"
    status = 503

    def __init__(self, message: str, *, retry_after: float = 1.0, fix: str = ""):
        super().__init__(message, fix=fix)
        self.retry_after = retry_after


class TooManyRequestsError(OverloadedError):
    """One API key has too many requests waiting (HTTP 429); others still get in."""

    code = "rate_limit_exceeded"
    status = 429


class DeadlineError(OctavoError):
    """A request took longer than it may (HTTP 504); it was ended."""

    code = "deadline_exceeded"
    status = 504


class EngineDeadError(OctavoError):
    """The engine ended; open requests cannot be finished (HTTP 503)."""

    code = "engine_dead"
    status = 503
    exit_code = 5


class RequestFailedError(OctavoError):
    """One request failed inside the engine; the others go on (HTTP 500)."""

    code = "request_failed"
