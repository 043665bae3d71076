"""Typed errors. Each names the field, file or feature at fault, what it got and what it wants."""


class BridleError(Exception):
    """Base class of every error that Bridle raises on purpose."""


class ModelLoadError(BridleError):
    """A model folder or weight file cannot be used.

    file: name of the file, relative to the model folder. tensor: name of the tensor at fault, if one is.
    """

    def __init__(self, file: str, problem: str, tensor: str | None = None) -> None:
        self.file = file
        self.tensor = tensor
        self.problem = problem
        where = file if tensor is None else f"{file}: tensor '{tensor}'"
        super().__init__(f"{where}: {problem}"[:512])


class RequestError(BridleError, ValueError):
    """A request field has a value that cannot be served."""

    def __init__(self, field: str, got: object, wants: str) -> None:
        self.field = field
        self.got = _short(got)
        self.wants = wants
        super().__init__(f"{field}: got {self.got}, wants {wants}"[:512])


class LimitError(RequestError):
    """A request field is well formed but larger than the engine accepts."""


class MemoryBudgetError(BridleError):
    """What was asked for does not fit the budget of device memory; nothing of it was begun.

    need, budget: bytes. what: is asked for.
    """

    def __init__(self, need: int, budget: int, what: str) -> None:
        self.need = need
        self.budget = budget
        self.what = what
        super().__init__(f"memory_budget: {what} need {need} bytes, the budget is {budget}"[:512])


class UnsupportedError(BridleError):
    """The named backend does not serve a feature of the request."""

    def __init__(self, feature: str, backend: str, reason: str) -> None:
        self.feature = feature
        self.backend = backend
        self.reason = reason
        super().__init__(f"backend '{backend}' does not serve {feature}: {reason}"[:512])


class ExportError(BridleError):
    """A model cannot be written. name: of the folder to be written."""

    def __init__(self, name: str, problem: str) -> None:
        self.name = name
        self.problem = problem
        super().__init__(f"{name}: {problem}"[:512])


class NumericFault(BridleError):
    """A request produced a NaN or an infinity. Other requests of the batch are not affected."""

    def __init__(self, step: int, stage: str) -> None:
        self.step = step
        self.stage = stage
        super().__init__(f"non-finite values in stage '{stage}' at step {step}")


class Cancelled(BridleError):
    """The request was cancelled between two steps."""

    def __init__(self, step: int) -> None:
        self.step = step
        super().__init__(f"cancelled before step {step}")


def _short(got: object) -> str:
    """`got` as one printable line of at most 80 characters; objects with an address in their repr become their type."""
    if got is None or isinstance(got, (bool, int, float, str, tuple, list)):
        text = (
            ascii(got[:80] if isinstance(got, str) else got)
            if _is_small(got)
            else f"{type(got).__name__} too long to show"
        )
    else:
        text = f"{type(got).__module__}.{type(got).__qualname__}"
    return text if len(text) <= 80 else text[:77] + "..."


def _is_small(got: object) -> bool:
    if isinstance(got, int):
        return got.bit_length() <= 256
    if isinstance(got, (tuple, list)):
        return len(got) <= 16 and all(isinstance(v, (bool, int, float, str)) and _is_small(v) for v in got)
    return True
