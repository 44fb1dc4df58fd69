"""What can be wrong with a bundle or an engine: one base and three children, one line each."""


class EngineError(Exception):
    """An engine or a bundle that is not used; the text says what was found and what would do."""


class Untrusted(EngineError):
    """It asks for something that a downloaded file must not have: a path, a plan, a link, code."""


class Incompatible(EngineError):
    """It was made for another version, target, device, model or shape than is at hand."""


class Corrupt(EngineError):
    """It is not what its manifest says: a hash, a length, a number or a field does not fit."""


__all__ = ["Corrupt", "EngineError", "Incompatible", "Untrusted"]
