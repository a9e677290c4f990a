"""The engines of the store's contract, for all its files."""

from tests.contract.test_store import name, store

__all__ = ["name", "store"]
