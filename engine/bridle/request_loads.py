"""How much the requests of a batch evaluate at once, before anything is computed."""

from collections.abc import Iterator, Sequence

from bridle.batch import MAX_CELLS
from bridle.request import ControlNet
from bridle.request_checks import Prepared

Size = tuple[int, int]


def loads(prepared: Sequence[Prepared], alone: bool) -> Iterator[tuple[Size, int, int]]:
    """For each size of rows: (height, width) of latents, the most rows of one evaluation, the most ControlNets of a row.

    alone: see `sampler.Evaluator`; an evaluation then has the rows of one image.
    """
    sizes: dict[Size, list[Prepared]] = {}
    for item in prepared:
        sizes.setdefault(_row_size(item), []).append(item)
    for size, items in sizes.items():
        most = max(1, MAX_CELLS // (size[0] * size[1]))
        controls = [sum(isinstance(control, ControlNet) for control in item.request.controls) for item in items]
        counts = [row_count(item) // (item.request.num_images if alone else 1) for item in items]
        yield size, min(most, max(counts) if alone else sum(counts)), max(controls)


def row_count(item: Prepared) -> int:
    """Rows of a request in one step."""
    request = item.request
    guided = 2 if item.guidance_scale > 1.0 else 1
    prompts = 1 + len(request.regions) if request.region_mode == "latent" else 1
    images = request.num_images * (2 if item.edit is not None else 1)
    return images * guided * prompts * len(item.windows)


def _row_size(item: Prepared) -> Size:
    window = item.windows[0]
    return item.latent_size if window is None else (window.height, window.width)
