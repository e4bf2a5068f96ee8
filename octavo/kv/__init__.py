"""Who owns which page of the KV cache. No tensor is touched here."""

from octavo.kv.pool import PagePool
from octavo.kv.prefix import page_digests, root_digest

__all__ = ["PagePool", "page_digests", "root_digest"]
