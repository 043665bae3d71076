"""What the U-Net and ControlNet have in common: time table, text keys and values, encoder and middle block."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from bridle.networks import layers
from bridle.networks.blocks import res_block, transformer
from bridle.networks.configs import EncoderConfig
from bridle.networks.layout import ResBlock, Stage, Transformer, encoder_layout, level_sizes, res_blocks, transformers
from bridle.networks.shared_start import SharedStart, shared_stages
from bridle.rows import KV, ContextSegment, Residuals, SiteTerms
from bridle_kernels.attention import Piece, Segment
from bridle_kernels.ops import Ops

Size = tuple[int, int]
PLAIN = SiteTerms()


@dataclass(frozen=True, slots=True)
class Site:
    """One cross-attention: its diffusers path, its resolution level (0 = latent), number of heads and width of a head."""

    name: str
    level: int
    heads: int
    dim: int


def attention_sites(config: EncoderConfig) -> tuple[Site, ...]:
    """Every cross-attention in forward order: encoder, middle block and, in a U-Net, decoder."""
    return tuple(
        Site(f"{stack.name}.transformer_blocks.{index}.attn2", level, stack.heads, stack.width // stack.heads)
        for level, stack in transformers(config)
        for index in range(stack.depth)
    )


def time_table(
    ops: Ops, weights: Mapping[str, Tensor], config: EncoderConfig, timesteps: Tensor, added: Tensor | None = None
) -> Tensor:
    """The shift of every residual block at every time step, concatenated in forward order: [S, sum of their widths].

    timesteps: [S] float32. added: [S or 1, time_dim] second embedding, or None. The result has the weights' dtype.
    """
    sinusoids = ops.time_embedding(
        timesteps,
        config.block_out_channels[0],
        flip_sin_to_cos=config.flip_sin_to_cos,
        freq_shift=config.freq_shift,
        dtype=weights["time_embedding.linear_1.weight"].dtype,
    )
    embedding = layers.mlp(ops, weights, "time_embedding", sinusoids, added)
    active = ops.activation(embedding, "silu")
    return ops.concat([layers.linear(ops, weights, f"{b.name}.time_emb_proj", active) for b in res_blocks(config)])


def time_width(config: EncoderConfig) -> int:
    """Columns of `time_table`."""
    return sum(block.outputs for block in res_blocks(config))


def added_embedding(
    ops: Ops, weights: Mapping[str, Tensor], config: EncoderConfig, pooled: Tensor, time_ids: Tensor
) -> Tensor:
    """SDXL's second embedding [R, time_dim], to be added to the time embedding.

    pooled: [R, P] pooled text. time_ids: [R, 6] float32, (original height, width, crop top, left, target height, width).
    """
    if config.added_time_dim is None:
        raise ValueError("added_embedding: this network has no second embedding")
    sinusoids = ops.time_embedding(
        time_ids,
        config.added_time_dim,
        flip_sin_to_cos=config.flip_sin_to_cos,
        freq_shift=config.freq_shift,
        dtype=weights["add_embedding.linear_1.weight"].dtype,
    )
    return layers.mlp(ops, weights, "add_embedding", ops.concat([pooled, sinusoids]))


def cross_kv(ops: Ops, weights: Mapping[str, Tensor], config: EncoderConfig, context: Tensor) -> tuple[KV, ...]:
    """Keys and values [R, L, H, d] of text tokens `context` [R, L, D], for each of `attention_sites`."""
    pairs = []
    for site in attention_sites(config):
        names = [f"{site.name}.to_k.weight", f"{site.name}.to_v.weight"]
        k, v = ops.project_heads(context, [weights[name] for name in names], site.heads)
        pairs.append(KV(k, v))
    return tuple(pairs)


@dataclass(frozen=True, slots=True)
class Trunk:
    """One forward pass over a batch of rows: everything that its blocks share.

    sizes: (height, width) per level. self_rows: per level, see `Rows`.
    """

    ops: Ops
    weights: Mapping[str, Tensor]
    config: EncoderConfig
    time: Tensor
    context: tuple[ContextSegment, ...]
    sizes: tuple[Size, ...]
    self_rows: tuple[Tensor | None, ...]

    def run(self, stage: Stage, x: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        """The residual block and transformer of a stage."""
        assert stage.res_block is not None
        y = self.run_res_block(stage.res_block, x)
        return self.run_transformer(stage.transformer, stage.level, y) if stage.transformer else y

    def run_res_block(self, block: ResBlock, x: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        """A residual block with its columns of the time table as shift."""
        shift = self.ops.columns(self.time, block.shift, block.shift + block.outputs)
        return res_block(self.ops, self.weights, block.name, x, self.config.groups, self.config.eps, shift)

    def run_transformer(self, block: Transformer, level: int, x: Tensor, start: SharedStart | None = None) -> Tensor:
        """A transformer with the segments of its cross-attentions. start: of rows that part in it."""
        segments = tuple(self.segments(block.site + index) for index in range(block.depth))
        size, self_rows = self.sizes[level], self.self_rows[level]
        return transformer(self.ops, self.weights, block, self.config, x, size, segments, self_rows, start)

    def segments(self, site: int) -> tuple[Segment, ...]:
        """The segments of one cross-attention."""
        return context_segments(self.context, site)


def context_segments(context: Sequence[ContextSegment], site: int) -> tuple[Segment, ...]:
    """What one cross-attention attends to."""
    return tuple(_segment_at(segment, site) for segment in context)


def _segment_at(segment: ContextSegment, site: int) -> Segment:
    terms = PLAIN if segment.sites is None else segment.sites[site]
    return Segment(
        tuple(Piece(piece.sites[site].k, piece.sites[site].v, piece.length) for piece in segment.pieces),
        weight=terms.weight,
        k_rows=segment.k_rows,
        v_rows=segment.v_rows,
        q_rows=segment.q_rows,
        bias=terms.bias,
        v_mix=segment.v_mix,
        mass=terms.mass,
        capture=terms.capture,
    )


def make_trunk(
    ops: Ops,
    weights: Mapping[str, Tensor],
    config: EncoderConfig,
    time: Tensor,
    context: tuple[ContextSegment, ...],
    size: Size,
    self_rows: tuple[Tensor | None, ...] | None = None,
) -> Trunk:
    """A forward pass over latents of `size`."""
    own = (None,) * config.levels if self_rows is None else self_rows
    return Trunk(ops, weights, config, time, context, level_sizes(size, config.levels), own)


def run_encoder(
    trunk: Trunk, x: Tensor, residuals: Residuals, start: SharedStart | None = None
) -> tuple[Tensor, list[Tensor]]:
    """The encoder after conv_in. Returns its output and all skip connections, that of conv_in (`x`) first.

    start: x has one row of each kind, and `starts_alike`; results have all rows.
    """
    skips = [_with_residuals(trunk, x, 0, residuals)] if start is None else _shared_stages(trunk, x, start, residuals)
    for stage in encoder_layout(trunk.config).stages[len(skips) - 1 :]:
        k = len(skips)
        x = trunk.ops.name_point(_encoder_stage(trunk, stage, skips[-1]), f"block.{k}")
        skips.append(_with_residuals(trunk, x, k, residuals))
    return skips[-1], skips


def _shared_stages(trunk: Trunk, x: Tensor, start: SharedStart, residuals: Residuals) -> list[Tensor]:
    """The skip connections of all rows up to the first stage with a cross-attention, inside which rows part."""
    ops, stages, last = trunk.ops, encoder_layout(trunk.config).stages, shared_stages(trunk.config)
    own = (None,) * trunk.config.levels
    narrow = replace(trunk, time=start.narrowed(ops, trunk.time), self_rows=own)
    skips = [x]
    for k, stage in enumerate(stages[:last]):
        skips.append(ops.name_point(_encoder_stage(narrow, stage, skips[-1]), f"block.{k + 1}"))
    parting = stages[last]
    assert parting.res_block is not None and parting.transformer is not None
    y = narrow.run_res_block(parting.res_block, skips[-1])
    y = ops.name_point(narrow.run_transformer(parting.transformer, parting.level, y, start), f"block.{last + 1}")
    return [*(start.spread(ops, skip) for skip in skips), _with_residuals(trunk, y, last + 1, residuals)]


def _with_residuals(trunk: Trunk, x: Tensor, k: int, residuals: Residuals) -> Tensor:
    found = residuals.get(f"block.{k}")
    return x if found is None else trunk.ops.residual_add(x, found)


def _encoder_stage(trunk: Trunk, stage: Stage, x: Tensor) -> Tensor:
    if stage.resample:
        return layers.conv(trunk.ops, trunk.weights, stage.resample, x, stride=2)
    return trunk.run(stage, x)


def run_middle(trunk: Trunk, x: Tensor) -> Tensor:
    """The middle block."""
    encoder = encoder_layout(trunk.config)
    x = trunk.run_res_block(encoder.mid_first, x)
    if encoder.mid_transformer:
        x = trunk.run_transformer(encoder.mid_transformer, trunk.config.levels - 1, x)
    return trunk.run_res_block(encoder.mid_second, x) if encoder.mid_second else x
