"""The hash chain that names full pages: equal digests mean equal tokens after an equal beginning.

sha256 over (parent digest, token ids as little-endian int32). The chain's root covers what else must be equal for two
requests to share pages: adapter, media, salt; each is length-prefixed, so no two triples run together.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt


def root_digest(adapter: str, media: str, salt: str) -> bytes:
    """The parent of a first page."""
    digest = hashlib.sha256(b"octavo-kv-1")
    for part in (adapter, media, salt):
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.digest()


def page_digests(parent: bytes, token_ids: npt.NDArray[np.int32], page_size: int) -> list[bytes]:
    """Digests of the full pages that `token_ids` fill, starting after the page named `parent`."""
    data = np.ascontiguousarray(token_ids, np.dtype("<i4")).tobytes()
    step = 4 * page_size
    digests = []
    for at in range(0, len(data) - step + 1, step):
        parent = hashlib.sha256(parent + data[at : at + step]).digest()
        digests.append(parent)
    return digests
