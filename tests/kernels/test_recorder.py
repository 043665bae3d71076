"""Recorded networks: the same bits as op by op, in one arena, for any number of threads at a time."""

import threading
from collections.abc import Callable

import pytest
import torch
from residual_term import Term
from torch import Tensor

from bridle_kernels import _core
from bridle_kernels.attention import Capture, Piece, Segment
from bridle_kernels.executor import Immediate
from bridle_kernels.native_ops import NativeOps
from bridle_kernels.ops import Ops
from bridle_kernels.packed_weights import PackedWeights
from bridle_kernels.program_cache import ProgramCache
from bridle_kernels.recorder import NotRecordableError, Program, ProgramFrame, Recorder

ROWS, HEADS, DIM = 3, 2, 8
WIDTH = HEADS * DIM
DTYPES = [torch.float32] + [torch.bfloat16] * ("avx512_bf16" in _core.available_isas())
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


class Network:
    """Every op that can be recorded, once."""

    def __init__(self, dtype: torch.dtype, seed: int = 0) -> None:
        self.dtype = dtype
        self._generator = torch.Generator().manual_seed(seed)
        self.weights = {
            "conv": self.rand(WIDTH, 4, 3, 3),
            **{name: self.rand(WIDTH, WIDTH, 3, 3) for name in ("down", "up")},
            "join": self.rand(WIDTH, 2 * WIDTH, 1, 1),
            "geglu": self.rand(4 * WIDTH, WIDTH),
            "back": self.rand(WIDTH, 2 * WIDTH),
            **{name: self.rand(WIDTH, WIDTH) for name in ("q", "k", "v", "q2", "out")},
            **{name: self.rand(WIDTH) for name in ("bias", "scale", "offset")},
            "geglu_bias": self.rand(4 * WIDTH),
        }
        self.sample, self.time = self.rand(ROWS, 4, 6, 5), self.rand(ROWS, 2 * WIDTH).float()
        keys = self.rand(ROWS, 7, HEADS, DIM), self.rand(ROWS, 7, HEADS, DIM)
        self.segments = (Segment((Piece(*keys),), weight=torch.tensor([1.0, 0.5, 0.0])),)
        self.residuals = [
            Term(self.rand(2, WIDTH, 6, 5), torch.tensor([0.5, 2.0]), (2, 0), torch.rand(2, 1, 6, 5)),
            Term(self.rand(1, WIDTH, 1, 1), torch.tensor([0.25]), None, None),
        ]
        self.self_rows = torch.tensor([0, 0, 2], dtype=torch.int32)

    def rand(self, *shape: int) -> Tensor:
        return (torch.randn(shape, generator=self._generator) / shape[-1] ** 0.5).to(self.dtype)

    def run(self, ops: Ops, sample: Tensor, time: Tensor, rows: Tensor, segments, residuals) -> Tensor:
        w = self.weights
        x = ops.conv2d(sample, w["conv"], w["bias"], shift=time[:, WIDTH:], activation="silu")
        x = ops.residual_add(x, residuals)
        y = ops.group_norm(x, w["scale"], w["offset"], 4, 1e-5, activation="silu")
        h = ops.linear(ops.tokens(y), w["out"], w["bias"])
        n = ops.layer_norm(h, w["scale"], w["offset"], 1e-5)
        q, k, v = ops.project_heads(n, [w["q"], w["k"], w["v"]], HEADS)
        h = ops.linear(ops.attention(q, (Segment((Piece(k, v),), q_rows=rows, k_rows=rows),)), w["out"], residual=h)
        (q,) = ops.project_heads(h, [w["q2"]], HEADS)
        h = ops.linear(ops.attention(q, segments), w["out"], residual=h)
        h = ops.linear(ops.geglu(h, w["geglu"], w["geglu_bias"]), w["back"], residual=h)
        x = ops.image(ops.linear(h, w["out"], residual=ops.tokens(x)), (6, 5))
        small = ops.conv2d(x, w["down"], stride=2)
        return ops.conv2d((x, ops.conv2d(small, w["up"], upsample=(6, 5))), w["join"], padding=0)

    def immediate(self, threads: int = 2) -> Tensor:
        ops = NativeOps(Immediate(_core.ThreadPool(threads)), PackedWeights())
        return self.run(ops, self.sample, self.time, self.self_rows, self.segments, self.residuals)

    def record(self) -> Program:
        recorder = Recorder()
        keys = recorder.named("cross", (1, 1, 1, 1), self.dtype)
        values = recorder.named("point", (1, 1, 1, 1), self.dtype)
        return recorder.finish(
            [
                self.run(
                    NativeOps(recorder, PackedWeights()),
                    recorder.input("sample", self.sample.shape, self.dtype),
                    recorder.input("time", self.time.shape, torch.float32),
                    recorder.named("rows", (ROWS,), torch.int32),
                    (Segment((Piece(keys, keys),)),),
                    [Term(values, values, None, None)],
                )
            ]
        )

    def bind(self, frame: ProgramFrame) -> None:
        frame.inputs["sample"].copy_(self.sample)
        frame.inputs["time"].copy_(self.time)
        frame.bind_segments("cross", self.segments)
        frame.bind_residuals("point", self.residuals)
        frame.bind_rows("rows", self.self_rows.tolist())

    def replay(self, threads: int = 2) -> Tensor:
        frame = ProgramFrame(self.record())
        self.bind(frame)
        frame.run(_core.ThreadPool(threads))
        return frame.outputs[0].clone()


@each_dtype
def test_a_replay_has_the_bits_of_the_ops(dtype: torch.dtype) -> None:
    network = Network(dtype)
    wanted = network.immediate()
    assert not wanted.isnan().any()
    for threads in (1, 2, 3, 5):
        assert torch.equal(network.replay(threads), wanted)


def test_operands_are_data() -> None:
    """Other samples, strengths, rows and keys need no other program, and all of them matter."""
    network = Network(torch.float32)
    frame, pool = ProgramFrame(network.record()), _core.ThreadPool(2)
    seen: list[Tensor] = []

    def check() -> None:
        network.bind(frame)
        frame.run(pool)
        assert torch.equal(frame.outputs[0], network.immediate())
        assert not any(torch.equal(frame.outputs[0], other) for other in seen)
        seen.append(frame.outputs[0].clone())

    check()
    changes: list[Callable[[], object]] = [
        lambda: setattr(network, "sample", network.rand(ROWS, 4, 6, 5)),
        lambda: setattr(network, "time", network.rand(ROWS, 2 * WIDTH)),
        lambda: setattr(network, "self_rows", torch.tensor([2, 1, 1], dtype=torch.int32)),
        lambda: setattr(network, "residuals", network.residuals[:1]),
        lambda: setattr(network, "residuals", []),
        lambda: setattr(network, "segments", (*network.segments, *Network(torch.float32, 9).segments)),
    ]
    for change in changes:
        change()
        if network.residuals:
            check()
        else:
            frame.bind_residuals("point", [])
            frame.run(pool)
            assert not torch.equal(frame.outputs[0], seen[-1])


def test_what_is_captured_is_added_up() -> None:
    network = Network(torch.float32)
    frame, out = ProgramFrame(network.record()), torch.zeros(ROWS, 30, 2)
    network.bind(frame)
    columns = torch.tensor([[1, 3]], dtype=torch.int32).expand(ROWS, 2)
    (segment,) = network.segments
    frame.bind_segments("cross", [Segment(segment.pieces, capture=Capture(columns, out))])
    pool = _core.ThreadPool(2)
    frame.run(pool)
    once = out.clone()
    frame.run(pool)
    assert float(once.min()) > 0.0
    torch.testing.assert_close(out, 2 * once)


def test_the_arena_is_smaller_than_its_buffers() -> None:
    plan = Network(torch.float32).record().plan
    assert 0 < plan.arena_bytes < plan.total_bytes / 2
    assert plan.nodes.count("self_attention") == plan.nodes.count("cross_attention") == 1


def test_a_frame_counts_packed_keys_and_values_too() -> None:
    network = Network(torch.float32)
    frame = ProgramFrame(network.record())
    own, element = frame.bytes - frame.plan.arena_bytes, 4
    assert own >= 2 * ROWS * 6 * 5 * WIDTH * element
    network.bind(frame)
    bound = frame.bytes - frame.plan.arena_bytes - own
    assert bound >= 2 * ROWS * 7 * WIDTH * element
    network.bind(frame)
    assert frame.bytes == frame.plan.arena_bytes + own + bound


def test_what_has_no_kernel_cannot_be_recorded() -> None:
    recorder = Recorder()
    ops, x = NativeOps(recorder, PackedWeights()), recorder.input("x", (1, 4, 6, 6), torch.float32)
    with pytest.raises(NotRecordableError, match="no kernel of the core"):
        ops.linear(torch.relu(ops.tokens(x)), torch.randn(4, 4))
    with pytest.raises(NotRecordableError, match="second condition"):
        ops.group_norm(x, torch.ones(4), torch.zeros(4), 2, 1e-5, affine=(torch.ones(1, 4), None))
    with pytest.raises(NotRecordableError, match="not bound"):
        ops.residual_add(x, [Term(torch.ones(1, 4, 6, 6), torch.ones(1), None, None)])
    with pytest.raises(ValueError, match="reads what no op has written"):
        ops.linear(recorder.empty(2, 4, dtype=torch.float32), torch.randn(4, 4))


def test_residuals_that_do_not_fit_are_named() -> None:
    network = Network(torch.float32)
    frame = ProgramFrame(network.record())
    with pytest.raises(ValueError, match="values is"):
        frame.bind_residuals("point", [Term(torch.ones(ROWS, WIDTH, 5, 5), torch.ones(ROWS), None, None)])
    with pytest.raises(ValueError, match="wants rows of a batch of 3"):
        frame.bind_residuals("point", [Term(torch.ones(1, WIDTH, 6, 5), torch.ones(1), (3,), None)])


def test_threads_get_frames_of_their_own() -> None:
    networks = [Network(torch.float32, seed) for seed in range(4)]
    for other in networks[1:]:
        other.weights = networks[0].weights
    wanted = [network.immediate() for network in networks]
    cache, pool, wrong = ProgramCache(2), _core.ThreadPool(2), []

    def work(index: int) -> None:
        for _ in range(20):
            with cache.frame("network", networks[0].record) as frame:
                networks[index].bind(frame)
                frame.run(pool)
                if not torch.equal(frame.outputs[0], wanted[index]):
                    wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and len(cache) == 1


def test_the_oldest_program_is_given_up() -> None:
    cache, made = ProgramCache(2), []

    def use(key: str) -> None:
        with cache.frame(key, lambda: made.append(key) or Network(torch.float32).record()):
            pass

    for key in ("a", "b", "a", "c", "a", "b"):
        use(key)
    assert made == ["a", "b", "c", "b"] and len(cache) == 2


def test_a_frame_whose_run_failed_is_not_used_again() -> None:
    network, cache = Network(torch.float32), ProgramCache(1)
    with pytest.raises(RuntimeError, match="no segments"), cache.frame("key", network.record) as broken:
        broken.run(_core.ThreadPool(1))
    with cache.frame("key", network.record) as frame:
        assert frame is not broken


def test_large_frames_are_let_go() -> None:
    program = Network(torch.float32).record()
    size = ProgramFrame(program).bytes
    assert size > program.plan.arena_bytes
    for largest, kept in ((size, True), (size - 1, False)):
        cache, seen = ProgramCache(1, largest), []
        for _ in range(2):
            with cache.frame("key", lambda: program) as frame:
                seen.append(frame)
        assert (seen[0] is seen[1]) is kept
