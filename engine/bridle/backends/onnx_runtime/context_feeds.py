"""The cross-attention of a batch of rows as inputs of the U-Net's graph.

The graph knows the text, with weights and biases for every site, and any number of further segments, each with a softmax
of its own. What else a segment may do is refused by name.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bridle.backends.onnx_runtime import element_types
from bridle.backends.onnx_runtime.graph_file import GraphFile
from bridle.errors import UnsupportedError
from bridle.rows import ContextSegment, Primitive, Rows, SiteTerms

Feeds = dict[str, Tensor]
PLAIN = SiteTerms()


def refuse(feature: Primitive, reason: str) -> UnsupportedError:
    """The error for a feature that a graph has no inputs for."""
    return UnsupportedError(feature.value, "ort", reason)


def check_segments(graph: GraphFile, rows: Rows) -> None:
    """Raises UnsupportedError for what the graph cannot do."""
    text, *further = rows.context
    for segment in rows.context:
        if segment.q_rows is not None:
            raise refuse(Primitive.MAP_MIXING, "its graphs do not read the maps of other rows")
        if any(terms.mass is not None for terms in segment.sites or ()):
            raise refuse(Primitive.COLUMN_MASS, "its graphs have no inputs for it")
    if further and "segment_k.0" not in graph.inputs:
        raise refuse(Primitive.CROSS_SEGMENTS, "this folder was exported without the feature 'regions'")
    for terms in (terms for segment in further for terms in segment.sites or ()):
        if terms.bias is not None or terms.capture is not None:
            raise refuse(Primitive.ATTENTION_BIAS, "its graphs have biases and maps of the text alone")
    for terms in text.sites or ():
        changed = terms.bias is not None or not isinstance(terms.weight, float) or terms.weight != 1.0
        if changed and "encoder_weight.0" not in graph.inputs:
            raise refuse(Primitive.ATTENTION_BIAS, "this folder was exported without the feature 'regions'")
        if terms.capture is not None and "map_columns" not in graph.inputs:
            raise refuse(Primitive.MAP_CAPTURE, "this folder was exported without the feature 'maps'")


def text_feeds(segment: ContextSegment, rows: int, masked: bool) -> Feeds:
    """Keys, values, weights and biases of the text. masked: whether the graph can hide columns that a row does not have."""
    feeds: Feeds = {}
    hidden = _hidden(segment, rows) if masked else None
    for site in range(len(segment.pieces[0].sites)):
        feeds[f"k.{site}"], feeds[f"v.{site}"] = _keys(segment, site), _values(segment, site)
        terms = PLAIN if segment.sites is None else segment.sites[site]
        if not isinstance(terms.weight, float) or terms.weight != 1.0:
            feeds[f"encoder_weight.{site}"] = _weight(terms.weight)
        biases = [bias for bias in (terms.bias, hidden) if bias is not None]
        if biases:
            feeds[f"encoder_attention_bias.{site}"] = biases[0] if len(biases) == 1 else biases[0] + biases[1]
    return feeds


def segment_feeds(segments: Sequence[ContextSegment], rows: int) -> Feeds:
    """Keys, values and weights of the further segments, as one stack."""
    if not segments:
        return {}
    feeds: Feeds = {}
    sites = range(len(segments[0].pieces[0].sites))
    longest = max(_width(segment) for segment in segments)
    for site in sites:
        feeds[f"segment_k.{site}"] = torch.stack([_padded(_keys(s, site), longest, rows) for s in segments], 1)
        feeds[f"segment_v.{site}"] = torch.stack([_padded(_values(s, site), longest, rows) for s in segments], 1)
        weights = [_weight(PLAIN.weight if s.sites is None else s.sites[site].weight) for s in segments]
        positions = max(weight.shape[1] for weight in weights)
        device = feeds[f"segment_k.{site}"].device
        wide = [weight.to(device).expand(rows, positions) for weight in weights]
        feeds[f"segment_weight.{site}"] = torch.stack(wide, 1)
    hidden = [_hidden(segment, rows) for segment in segments]
    widths = [_width(segment) for segment in segments]
    if any(h is not None for h in hidden) or min(widths) < longest:
        feeds["segment_bias"] = torch.stack(
            [_padded_bias(h, width, longest, rows) for h, width in zip(hidden, widths, strict=True)], 1
        ).to(feeds["segment_k.0"].device)
    return feeds


def stand_ins(graph: GraphFile) -> Feeds:
    """What takes the place of defaults without elements, which TensorRT refuses: one segment of weight 0, no token's map."""
    feeds: Feeds = {}
    for name, value in graph.inputs.items():
        kind, _, site = name.partition(".")
        if kind in ("segment_k", "segment_v"):
            feeds[name] = torch.zeros(
                (1, 1, 1, *(dim or 1 for dim in value.dims[3:])), dtype=element_types.TORCH[value.type]
            )
            feeds[f"segment_weight.{site}"] = torch.zeros((1, 1, 1))
    if "map_columns" in graph.inputs:
        feeds["map_columns"] = torch.full((1, 1), -1, dtype=torch.int64)
    return feeds


def lengths(segment: ContextSegment, rows: int) -> tuple[int, ...]:
    """How many columns of the text each row has."""
    (piece,) = segment.pieces
    return (_width(segment),) * rows if piece.length is None else tuple(piece.length.tolist())


def _width(segment: ContextSegment) -> int:
    return sum(piece.sites[0].k.shape[1] for piece in segment.pieces)


def _keys(segment: ContextSegment, site: int) -> Tensor:
    keys = torch.cat([piece.sites[site].k for piece in segment.pieces], 1)
    return keys if segment.k_rows is None else keys[segment.k_rows.clamp(min=0).long()]


def _values(segment: ContextSegment, site: int) -> Tensor:
    values = torch.cat([piece.sites[site].v for piece in segment.pieces], 1)
    if segment.v_rows is not None:
        values = values[segment.v_rows.clamp(min=0).long()]
    if segment.v_mix is None:
        return values
    mixed = torch.matmul(segment.v_mix.to(values.dtype), values.flatten(2))
    return mixed.reshape(*mixed.shape[:2], *values.shape[2:])


def _hidden(segment: ContextSegment, rows: int) -> Tensor | None:
    """[R, 1, 1, L], -inf at columns that a row does not have; None where every row has all."""
    absent = [r for r in (segment.k_rows, segment.v_rows) if r is not None and bool((r < 0).any())]
    if not absent and all(piece.length is None for piece in segment.pieces):
        return None
    parts = []
    for piece in segment.pieces:
        places = torch.arange(piece.sites[0].k.shape[1], device=piece.sites[0].k.device)
        seen = torch.ones((rows, len(places)), dtype=torch.bool, device=places.device)
        parts.append(seen if piece.length is None else places < piece.length[:, None].to(places.device))
    visible = torch.cat(parts, 1)
    for reads in absent:
        visible &= (reads >= 0)[:, None]
    bias = torch.zeros(visible.shape, device=visible.device).masked_fill(~visible, -torch.inf)
    return bias[:, None, None]


def _weight(weight: float | Tensor) -> Tensor:
    """[R or 1, N or 1]."""
    if not isinstance(weight, Tensor):
        return torch.full((1, 1), weight)
    return weight[:, None] if weight.ndim == 1 else weight


def _padded(tokens: Tensor, length: int, rows: int) -> Tensor:
    """[R, length, H, d]."""
    padded = F.pad(tokens, (0, 0, 0, 0, 0, length - tokens.shape[1]))
    return padded.expand(rows, *padded.shape[1:])


def _padded_bias(hidden: Tensor | None, width: int, length: int, rows: int) -> Tensor:
    """[R, 1, length]."""
    bias = torch.zeros((rows, 1, width)) if hidden is None else hidden[:, 0].cpu()
    return F.pad(bias, (0, length - width), value=-torch.inf)
