"""A controlled image from an exported folder, by onnxruntime and a tokenizer: `onnx_controlnet.py OUT NAME EDGES.png`.

OUT: written by `bridle export --control .../NAME --features residuals`. DDIM, eta 0.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image
from transformers import CLIPTokenizer

PROMPT, SEED, STEPS, GUIDANCE, SCALE = "a yellow star and a purple circle on a blue background", 1, 20, 5.0, 0.8


def main(folder: Path, control: str, edges: str, out: str = "onnx.png") -> None:
    def session(name: str) -> onnxruntime.InferenceSession:
        return onnxruntime.InferenceSession(str(folder / name / "model.onnx"), providers=["CPUExecutionProvider"])

    text, unet, net = session("text_encoder"), session("unet"), session(f"controlnet/{control}")
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    steps = config["num_train_timesteps"]
    betas = np.linspace(config["beta_start"] ** 0.5, config["beta_end"] ** 0.5, steps) ** 2
    signal = np.cumprod(1 - betas)
    predicts_v = config.get("prediction_type") == "v_prediction"

    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    shape = {"padding": "max_length", "max_length": 77, "truncation": True, "return_tensors": "np"}
    ids = tokenizer(["", PROMPT], **shape).input_ids.astype(np.int64)
    context = text.run(["last_hidden_state"], {"input_ids": ids})[0]

    hint = np.repeat(np.asarray(Image.open(edges).convert("RGB"), np.float32).transpose(2, 0, 1)[None] / 255, 2, 0)
    latents = np.random.default_rng(SEED).standard_normal((1, 4, hint.shape[2] // 8, hint.shape[3] // 8))
    for step in range(STEPS):
        now = steps - 1 - step * (steps // STEPS)
        feeds = {"sample": np.repeat(latents, 2, 0).astype(np.float32), "timestep": np.array(now, np.float32)}
        feeds["encoder_hidden_states"] = context
        names = [output.name for output in net.get_outputs()]
        scale = np.full((1, 1), SCALE, np.float32)
        residuals = net.run(names, {**feeds, "controlnet_cond": hint, "conditioning_scale": scale})
        plain, guided = unet.run(["out_sample"], {**feeds, **dict(zip(names, residuals, strict=True))})[0]
        output = plain + GUIDANCE * (guided - plain)
        a, b = signal[now] ** 0.5, (1 - signal[now]) ** 0.5
        by_v = (a * latents - b * output, a * output + b * latents)
        clean, noise = by_v if predicts_v else ((latents - b * output) / a, output)
        before = signal[max(now - steps // STEPS, 0)]
        latents = before**0.5 * clean + (1 - before) ** 0.5 * noise

    factor = json.loads((folder / "vae_decoder" / "config.json").read_text()).get("scaling_factor", 0.18215)
    image = session("vae_decoder").run(None, {"latent_sample": (latents / factor).astype(np.float32)})[0]
    Image.fromarray(((image[0].transpose(1, 2, 0) + 1) * 127.5).clip(0, 255).round().astype(np.uint8)).save(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
