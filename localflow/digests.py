"""The hash of which fingerprints are made: that of `hashlib`, which would load all of OpenSSL beside it."""

from __future__ import annotations

try:
    from _blake2 import blake2b
except ImportError:  # a Python that was built without its own hashes
    from hashlib import blake2b

__all__ = ["blake2b"]
