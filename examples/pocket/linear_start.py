"""The autoencoder's first weights: coarse colours pass straight through it from the first step.

A small autoencoder with random weights takes thousands of steps until colours appear at all. So the first channels of
every layer carry a signal s and its negative as a pair: after a SiLU, silu(s) - silu(-s) = s, and a group normalisation
that holds whole pairs takes no mean away. The encoder then starts as the mean colour of every latent cell, the decoder as
its repetition, and training adds the detail. Residual branches start at zero (arXiv 2003.04887); all other weights are
random.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

SIGNALS = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1 / 3, 1 / 3, 1 / 3]])
"""[latents, RGB]: red, green, blue and brightness."""
QUIET = -6.0
"""Log variance of the posterior at the start."""
OUTPUT_SCALE = 0.65
"""Root mean square of pictures, which the decoder's last normalisation divides by."""


def start_linear(autoencoder: AutoencoderKL) -> None:
    """Set the weights in place. At least twice as many channels as `SIGNALS` has rows are needed everywhere."""
    encoder, decoder = autoencoder.encoder, autoencoder.decoder
    latents, count = len(SIGNALS), 2 * len(SIGNALS)
    copy, pairs = torch.eye(count), _pairs(latents)
    with torch.no_grad():
        for module in autoencoder.modules():
            if hasattr(module, "conv_shortcut"):
                nn.init.zeros_(module.conv2.weight)
                nn.init.zeros_(module.conv2.bias)
                if module.conv_shortcut is not None:
                    _pass(module.conv_shortcut, copy)
        for block in encoder.down_blocks[:-1]:
            _pass_mean(block.downsamplers[0].conv, copy)
        for block in decoder.up_blocks[:-1]:
            _pass(block.upsamplers[0].conv, copy)
        _pass(encoder.conv_in, pairs @ SIGNALS)
        _pass(encoder.conv_out, 0.5 * pairs.T)
        _pass(autoencoder.quant_conv, torch.eye(latents))
        _pass(autoencoder.post_quant_conv, torch.eye(latents))
        _pass(decoder.conv_in, pairs)
        _pass(decoder.conv_out, OUTPUT_SCALE * pairs.T[:3])
        autoencoder.quant_conv.weight[latents:] = 0.0
        autoencoder.quant_conv.bias[latents:] = QUIET


def _pairs(count: int) -> Tensor:
    """[2 count, count]: every signal, then its negative."""
    return torch.stack([torch.eye(count), -torch.eye(count)], dim=1).reshape(2 * count, count)


def _pass(convolution: nn.Conv2d, matrix: Tensor) -> None:
    """The first output channels become `matrix` times the first input channels, pixel by pixel."""
    rows, columns = matrix.shape
    middle = convolution.kernel_size[0] // 2
    convolution.weight[:rows] = 0.0
    convolution.weight[:rows, :columns, middle, middle] = matrix
    convolution.bias[:rows] = 0.0


def _pass_mean(convolution: nn.Conv2d, matrix: Tensor) -> None:
    """The same with the mean of two by two pixels; diffusers pads on the right and below only."""
    rows, columns = matrix.shape
    convolution.weight[:rows] = 0.0
    convolution.weight[:rows, :columns, :2, :2] = matrix[:, :, None, None] / 4
    convolution.bias[:rows] = 0.0
