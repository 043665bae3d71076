"""A model of middle size, whose sums cross several blocks of K, and the runs that determinism is tested on."""

from dataclasses import replace
from pathlib import Path

import pytest

from bridle import architectures, new_model

_MIDDLE = {
    "block_out_channels": [64, 128],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "sample_size": 32,
}


@pytest.fixture(scope="session")
def middle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SD 1.x with 64 and 128 channels and a ControlNet; pictures of 256 pixels have latents of 32."""
    tiny = architectures.ARCHITECTURES["tiny"]
    middle = replace(tiny, unet={**tiny.unet, **_MIDDLE})
    path = tmp_path_factory.mktemp("middle") / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(new_model, "ARCHITECTURES", {"middle": middle})
        new_model.write_new_model("middle", path, seed=9, controlnet=True)
    return path
