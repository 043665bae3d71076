"""What is run when, in ten, eight or four minutes: first what is right, then what is cheap and was seldom measured.

A stage may take what it needs, and its part of what the stages that fit beside it do not need. One that ends early leaves its
time to all others, and none can take theirs; those that do not fit run if time is left after all.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

LONG = 7.0
"""Minutes. With less there is no time to compile a peer, nor for the full U-Nets beside float32 before the timings."""
SHARES = {"gpu_attention_checks": 4, "gpu_gradient_checks": 4, "gpu_norm_checks": 2}
"""Processes that share the checks of a module: most of their time is one core's, compiling kernels."""
TITLES = ("correctness", "parity", "timings", "first_image", "tuning", "rates")
FAMILIES = ("sd15", "sdxl")
READY = "ready"
"""File in a model's folder whose weights are complete."""


@dataclass(frozen=True)
class Stage:
    """parts: run beside each other. title: what `--only` calls it. seconds: what it needs.

    quiet: nothing else may use the device meanwhile, so what was started ahead is waited for, then ended.
    """

    title: str
    parts: tuple[str, ...]
    seconds: float
    quiet: bool = True


def ahead(minutes: float, titles: Collection[str] = TITLES) -> list[str]:
    """Parts that run beside all stages that want no quiet: weights, then peers where there is time to compile them, and
    kernels for first images. titles: of the stages to come."""
    if minutes < LONG:
        return [f"models:{family}" for family in FAMILIES]
    bundles = [f"bundle:{family}" for family in FAMILIES if "first_image" in titles]
    return [*(f"ahead:{family}" for family in FAMILIES), *bundles]


def stages(minutes: float, device: str, modules: Sequence[str], peers: bool) -> list[Stage]:
    """In their order. modules: of checks of kernels. peers: whether diffusers is there."""
    long = minutes >= LONG
    checks = ["parity:controls", "parity:loop"]
    if device == "cuda":
        checks = [*(name for module in modules for name in shared(module)), "step_kernel", *checks]
    full = Stage("parity", tuple(f"parity:{family}" for family in FAMILIES), 50.0, quiet=False)
    compiled = [
        Stage("timings", ("timings:sd15:compiled",), 50.0),
        Stage("timings", ("timings:sdxl:compiled",), 70.0),
    ]
    first_images = _first_images("sd15", peers, long)
    return [
        Stage("correctness", tuple(checks), 130.0 if long else 80.0, quiet=False),
        *([full, *first_images] if long else []),
        Stage("timings", ("timings:sdxl",), 80.0 if long else 50.0),
        Stage("timings", ("timings:sd15",), 70.0 if long else 45.0),
        *([] if long else first_images),
        *(compiled if long and peers else []),
        Stage("timings", ("timings:sd15-batch",), 30.0),
        Stage("timings", ("timings:sdxl-batch",), 40.0),
        *([] if long else [full]),
        Stage("tuning", ("tuning",), 25.0),
        Stage("rates", ("rates",), 20.0),
        *_first_images("sdxl", peers, long),
    ]


def _first_images(family: str, peers: bool, bundles: bool) -> list[Stage]:
    """Ours compiles all its kernels. bundles: whether there was time to export them; right after it, as the two are a pair."""
    seconds = {"ours": 35.0, **({"bundle": 25.0} if bundles else {}), **({"eager": 25.0} if peers else {})}
    return [Stage("first_image", (f"first_image:{system}-{family}",), needed) for system, needed in seconds.items()]


def shared(module: str) -> list[str]:
    """The parts that check a module."""
    count = SHARES.get(module, 1)
    return [f"kernels:{module}:{index + 1}/{count}" for index in range(count)] if count > 1 else [f"kernels:{module}"]


def limit(coming: Sequence[Stage], left: float) -> float:
    """Seconds of the first of the stages to come, of those that are left."""
    needed = fitting = coming[0].seconds
    for stage in coming[1:]:
        needed += stage.seconds
        if needed > left:
            break
        fitting = needed
    return min(left, left * coming[0].seconds / fitting)  # rounding shall give nobody more than there is
