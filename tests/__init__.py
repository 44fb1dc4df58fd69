"""A package, so that test modules can share fixtures by `from tests.x import y`."""
