"""The workloads: what is computed, said once for our requests and for the peers' rows."""

from collections.abc import Mapping
from dataclasses import dataclass

PARAMETERS = {"unet": 0.86e9, "controlnet": 0.36e9, "decoder": 0.05e9, "sdxl unet": 2.57e9}
"""Of the published networks, for the estimate of memory."""


@dataclass(frozen=True)
class Workload:
    """family: "sd15" or "sdxl". requests: in one batch. steps: 0 = no U-Net. decodes: whether the image is decoded.

    own_reference: we compute what the peers cannot, so our outputs are held against the reference backend instead.
    over: another workload, of which ours runs in the same rounds: what is asked is the price of what is added to it.
    """

    title: str
    family: str = "sd15"
    requests: int = 1
    controlnets: int = 0
    region_mode: str | None = None
    capture: bool = False
    steps: int = 1
    decodes: bool = False
    own_reference: bool = False
    over: str | None = None

    @property
    def parameters(self) -> float:
        """Of all networks that take part."""
        unet = PARAMETERS["unet" if self.family == "sd15" else "sdxl unet"] if self.steps else 0.0
        return unet + self.controlnets * PARAMETERS["controlnet"] + (PARAMETERS["decoder"] if self.decodes else 0.0)

    @property
    def rows_per_request(self) -> int:
        """Unconditional and conditional, for the peers also of every region."""
        return 2 * (1 + REGIONS) if self.region_mode else 2


REGIONS = 4

WORKLOADS: Mapping[str, Workload] = {
    "step": Workload("one CFG step"),
    "decode": Workload("VAE decode", steps=0, decodes=True),
    "controlnet": Workload("step, one ControlNet", controlnets=1),
    "two-controlnets": Workload("step, two ControlNets", controlnets=2),
    "regions-attention": Workload(
        "step, 4 regions in cross-attention; peers: rows", region_mode="attention", own_reference=True, over="step"
    ),
    "regions-latent": Workload("step, 4 regions as rows", region_mode="latent"),
    "capture": Workload("step with map capture", capture=True, own_reference=True, over="step"),
    "image": Workload("image, 20 steps", steps=20, decodes=True),
    "batch-2": Workload("step of 2 requests", requests=2),
    "batch-4": Workload("step of 4 requests", requests=4),
    "sdxl-step": Workload("SDXL, one CFG step", family="sdxl"),
}
"""All at 512x512. A batch of one request is "step"."""
