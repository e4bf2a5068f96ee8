"""Who may come in: API keys, kept as hashes and compared in constant time, and names the server answers to."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from octavo.config import ServerOptions
from octavo.errors import ConfigError
from octavo.server.http import HttpError

logger = logging.getLogger("octavo.server")

PUBLIC = frozenset({"/live", "/ready", "/health", "/startup"})
"""The routes that are reached without a key: what probes ask. Every other path, known or not, wants one."""

ENVIRONMENT = "OCTAVO_API_KEY"
_MAX_KEYS = 1000
_MAX_KEY_CHARS = 512
_MAX_FILE_BYTES = 1 << 20

RawHeaders = Iterable[tuple[bytes, bytes]]


class KeyRing:
    """The keys that open the server, from flags, a file and the environment. Only SHA-256 hashes are kept.

    Args:
        keys: that stay.
        file: of keys, one a line; blank lines and those that begin with # are skipped. `reload` reads it again.

    Raises:
        ConfigError: a key is empty or not of visible ASCII, there are more than 1,000, or the file cannot be read or
            holds none.
    """

    def __init__(self, keys: Iterable[str] = (), file: Path | None = None):
        self._fixed = tuple(_hashed(key, "--api-key") for key in keys)
        self._file = file
        self._digests = self._all()

    @classmethod
    def of(cls, options: ServerOptions, environ: Mapping[str, str] = os.environ) -> KeyRing:
        """From `--api-key`, `--api-key-file` and OCTAVO_API_KEY (one key, or several with commas between)."""
        named = [key.strip() for key in environ.get(ENVIRONMENT, "").split(",")]
        file = Path(options.api_key_file) if options.api_key_file else None
        return cls((*options.api_key, *filter(None, named)), file)

    @classmethod
    def of_digests(cls, digests: Iterable[bytes]) -> KeyRing:
        """From another ring's `digests`; `replace` changes them."""
        ring = cls()
        ring.replace(digests)
        return ring

    @property
    def digests(self) -> tuple[bytes, ...]:
        """The keys' SHA-256 hashes."""
        return self._digests

    def replace(self, digests: Iterable[bytes]) -> None:
        """Let other keys open the server from now on."""
        self._digests = tuple(digests)

    def __len__(self) -> int:
        return len(self._digests)

    def reload(self) -> bool:
        """Read the file again; if that fails, the log says why and the keys stay as they are. Whether it worked."""
        try:
            self._digests = self._all()
        except ConfigError as error:
            logger.error("the API keys stay as they were: %s", error)
            return False
        logger.info("API keys read again: %d", len(self._digests))
        return True

    def _all(self) -> tuple[bytes, ...]:
        digests = tuple(dict.fromkeys((*self._fixed, *(_read(self._file) if self._file else ()))))
        if len(digests) > _MAX_KEYS:
            raise ConfigError(
                f"There are {len(digests)} API keys, more than {_MAX_KEYS}.",
                fix="Put a gateway before the server that knows the users, and give it one key.",
                param="api_key_file",
            )
        return digests

    def identify(self, headers: RawHeaders) -> str | None:
        """Which key a request carries, as a name that does not tell the key; None if it carries none that opens.

        A key comes as `Authorization: Bearer KEY` or as `x-api-key: KEY`. If there are several, all must be one and the
        same: nothing before us can then have checked another one than we do.
        """
        given = [digest for name, value in headers if (digest := _credential(name, value)) is not None]
        if not given or len(set(given)) > 1:
            return None
        matches = [hmac.compare_digest(given[0], digest) for digest in self._digests]  # all of them, always
        return hashlib.sha256(b"octavo-key-name" + given[0]).hexdigest()[:32] if any(matches) else None


def unauthorized() -> HttpError:
    """The reply to a request without a key that opens (401)."""
    return HttpError(
        401,
        "invalid_api_key",
        "The API key is missing or wrong.",
        fix="Send Authorization: Bearer KEY, or x-api-key: KEY.",
    )


def _credential(name: bytes, value: bytes) -> bytes | None:
    """The hash of what a header offers as a key; of nothing, if it is of another scheme."""
    if name == b"x-api-key":
        return hashlib.sha256(value.strip()).digest()
    if name == b"authorization":
        scheme, _, key = value.partition(b" ")
        return hashlib.sha256(key.strip() if scheme.lower() == b"bearer" else b"").digest()
    return None


def _hashed(key: str, origin: str) -> bytes:
    if not key or len(key) > _MAX_KEY_CHARS or not all("!" <= char <= "~" for char in key):
        raise ConfigError(
            f"A key of {origin} is empty, longer than {_MAX_KEY_CHARS} characters, or not of visible ASCII.",
            fix="Make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'",
            param="api_key",
        )
    return hashlib.sha256(key.encode()).digest()


def _read(file: Path) -> list[bytes]:
    try:
        with file.open("rb") as opened:
            data = opened.read(_MAX_FILE_BYTES + 1)
        text = data.decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ConfigError(
            f"The key file {file} cannot be read: {reason}.", fix="Check --api-key-file.", param="api_key_file"
        ) from error
    if len(data) > _MAX_FILE_BYTES:
        raise ConfigError(f"The key file {file} is larger than 1 MiB.", fix="Check it.", param="api_key_file")
    lines = [line.strip() for line in text.splitlines()]
    keys = [_hashed(line, str(file)) for line in lines if line and not line.startswith("#")]
    if not keys:  # an emptied file must not open the server to all
        raise ConfigError(f"The key file {file} holds no key.", fix="Write one a line.", param="api_key_file")
    return keys


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def check_host(headers: RawHeaders, allowed: frozenset[str]) -> None:
    """Refuse names that only a stranger's DNS can have pointed here.

    A page of evil.example whose name is made to resolve to 127.0.0.1 may talk to a server on this machine as if it were
    its own. Such a request names that host. Addresses, names without a dot and those under .localhost cannot be a
    stranger's.

    Args:
        allowed: further names, in lower case.

    Raises:
        HttpError: there are two hosts, or one that is refused (403).
    """
    hosts = {value for name, value in headers if name == b"host"}
    if len(hosts) > 1:
        raise HttpError(400, "invalid_host", "There are two Host headers.", fix="Send one.")
    name = _host_name(hosts.pop().decode("latin-1")) if hosts else ""
    if "." not in name or name.endswith(".localhost") or name in allowed or _is_address(name):
        return
    raise HttpError(
        403,
        "host_not_allowed",
        f"This server does not go by the name {name[:100]!r}.",
        fix="Ask it by its address, or start it with --allowed-host or with a key.",
    )


def _host_name(host: str) -> str:
    """A Host header without its port, in lower case."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower().rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
