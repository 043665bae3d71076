"""The negative control: products whose order of sums depends on the batch."""

from torch import Tensor

from bridle_kernels.ops import ReferenceOps


class SplitOps(ReferenceOps):
    """Sums K in two halves where there are many rows, as products do that are tuned for speed alone."""

    @staticmethod
    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, **options: object) -> Tensor:
        half = weight.shape[1] // 2
        if x.shape[0] <= 2:
            return ReferenceOps.linear(x, weight, bias, **options)
        upper = ReferenceOps.linear(x[..., half:], weight[:, half:])
        if options.get("residual") is not None:
            upper = upper + options["residual"]
        return ReferenceOps.linear(
            x[..., :half], weight[:, :half], bias, residual=upper, activation=options.get("activation")
        )
