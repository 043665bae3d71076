"""Train the pocket model from scratch: `python train.py --minutes 100 --out pocket_run`.

Runs on a CPU or a GPU, resumes where it was stopped, and rewrites the exported
pipeline in `OUT/pocket` after every stage and every few minutes. With
`--continue-from FOLDER` every stage starts from an exported pipeline's weights,
and `--shares 0 0.8 0.06 0.08 0.06` leaves its autoencoder as it is.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch

import workers
from autoencoder import autoencoder_stage, build_autoencoder, encode_all, measure_scale
from controls import FOLDERS, HINTS, build_control, control_stage, draw_hints
from denoiser import Denoiser, NoisyBatches, caption_tokens, choose_attention, denoiser_stage
from exported import start_from
from scenes import SceneImages
from stage import train

SHARES = {"autoencoder": 0.12, "denoiser": 0.64, "seg": 0.06, "canny": 0.12, "sketch": 0.06}
"""How the minutes are divided."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=100.0, help="budget of all stages together")
    parser.add_argument("--out", type=Path, default=Path("pocket_run"), help="folder of the run")
    parser.add_argument("--seed", type=int, default=0, help="of weights and samples")
    parser.add_argument("--scenes", type=int, default=20_000, help="training scenes to render")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--batch",
        type=int,
        help="scenes a step of the denoiser, half as many for the rest; default: 32 on a CPU, else 512",
    )
    parser.add_argument("--workers", type=int, default=2, help="CPU processes that share a batch")
    parser.add_argument("--continue-from", type=Path, help="exported pipeline to start from; default: random weights")
    parser.add_argument(
        "--shares",
        nargs=len(SHARES),
        type=float,
        default=list(SHARES.values()),
        metavar="SHARE",
        help=f"of the minutes for {', '.join(SHARES)}; 0 leaves a part as it started (default: %(default)s)",
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    (arguments.out / "cache").mkdir(parents=True, exist_ok=True)
    if arguments.device == "cpu" and arguments.workers > 1:
        workers.run(arguments.workers, arguments.out / "cache" / "workers", partial(run, arguments))
    else:
        run(arguments)


def run(arguments: argparse.Namespace) -> None:
    """All stages, in one of `workers.count()` processes."""
    torch.manual_seed(arguments.seed)
    device = torch.device(arguments.device)
    torch.backends.cudnn.benchmark = True
    batch = (arguments.batch or (32 if device.type == "cpu" else 512)) // workers.count()
    out: Path = arguments.out
    earlier: Path | None = arguments.continue_from
    with workers.first_then_others():
        images = SceneImages(out / "cache" / "scenes.u8", arguments.scenes, first_seed=0)
    autoencoder = build_autoencoder().to(device)
    start_from(earlier, {"vae": autoencoder})
    minutes = {name: share * arguments.minutes for name, share in zip(SHARES, arguments.shares, strict=True)}
    train(autoencoder_stage(autoencoder, images, minutes["autoencoder"], batch // 2, device), out, arguments.seed)
    latents = encode_all(autoencoder, images, out / "cache", device)
    autoencoder.register_to_config(scaling_factor=measure_scale(latents))
    denoiser = Denoiser().to(device)
    start_from(earlier, {"text_encoder": denoiser.text_encoder, "unet": denoiser.unet})
    choose_attention(denoiser.text_encoder, device)
    choose_attention(denoiser.unet, device)
    with workers.first_then_others():
        tokens = caption_tokens(images.count, out / "cache" / "tokens.npy")
    batches = NoisyBatches(denoiser, latents, autoencoder.config.scaling_factor, tokens, device)
    pocket = out / "pocket"
    train(denoiser_stage(denoiser, batches, autoencoder, minutes["denoiser"], batch, pocket), out, arguments.seed)
    controls: dict[str, torch.nn.Module] = {}
    for name in HINTS:
        control = controls[name] = build_control(name, denoiser).to(device)
        if name == "canny":
            control.load_state_dict(controls["seg"].state_dict())
        start_from(earlier, {FOLDERS[name]: control})
        hints = draw_hints(name, images)
        stage = control_stage(name, control, denoiser, batches, hints, autoencoder, minutes[name], batch // 2, pocket)
        train(stage, out, arguments.seed)


if __name__ == "__main__":
    main()
