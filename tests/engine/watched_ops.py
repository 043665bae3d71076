"""Reference ops that count, or refuse, what is asked of them."""

from collections import Counter

import torch

from bridle_kernels.ops import ReferenceOps


class CountingOps(ReferenceOps):
    """Counts the calls of each op."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def __getattribute__(self, name: str) -> object:
        value = super().__getattribute__(name)
        if callable(value) and not name.startswith("_"):
            super().__getattribute__("calls")[name] += 1
        return value


class NamingOps(ReferenceOps):
    """Counts how often an op is given each of the named weights."""

    def __init__(self, names: dict[int, str]) -> None:
        self.names, self.uses = names, Counter()

    def __getattribute__(self, name: str) -> object:
        value = super().__getattribute__(name)
        if not callable(value) or name.startswith("_"):
            return value

        def counted(*arguments: object, **named: object) -> object:
            for item in (*arguments, *named.values()):
                for tensor in item if isinstance(item, tuple | list) else (item,):
                    if isinstance(tensor, torch.Tensor) and tensor.data_ptr() in self.names:
                        self.uses[self.names[tensor.data_ptr()]] += 1
            return value(*arguments, **named)

        return counted


class RefusingOps:
    """Ops of which none may be called."""

    def __getattr__(self, name: str) -> object:
        raise AssertionError(f"{name} was called")
