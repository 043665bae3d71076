"""The cache of packed weights: what is mapped is what was packed, and no bad file or disk is ever believed or fatal."""

import errno
import logging
import mmap
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bridle_kernels import _core, packed_cache
from bridle_kernels.packed_cache import PackedCache
from bridle_kernels.packed_weights import PackedWeights
from bridle_kernels.stored_weights import StoredWeights
from mapped_memory import resident

PLENTY = 1 << 30


def matrices(seed: int, sizes: tuple[int, ...] = (64, 100, 1, 4096)) -> dict[str, memoryview]:
    generator = np.random.default_rng(seed)
    return {f"m{i}": memoryview(generator.integers(0, 256, n, dtype=np.uint8)) for i, n in enumerate(sizes)}


def cache(place: Path, **options: int) -> PackedCache:
    return PackedCache(place / "cache", **{"limit": PLENTY, "smallest": 0, "threads": 2, **options})


def saved(place: Path, key: str, values: Mapping[str, memoryview], **options: int) -> Path:
    made = cache(place, **options)
    made.save(key, values)
    made.flush()
    return place / "cache" / f"{key}.packed"


def same(found: Mapping[str, memoryview], wanted: Mapping[str, memoryview]) -> bool:
    return found.keys() == wanted.keys() and all(bytes(found[name]) == bytes(wanted[name]) for name in wanted)


def test_what_was_saved_is_mapped_read_only_from_cache_lines(tmp_path: Path) -> None:
    saved(tmp_path, "key", matrices(1))
    found = cache(tmp_path).load("key")
    assert same(found, matrices(1)) and all(data.readonly for data in found.values())
    assert all(np.frombuffer(data, dtype=np.uint8).ctypes.data % 64 == 0 for data in found.values())
    assert cache(tmp_path).load("other") == {}
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["key.packed"]


def test_a_file_is_replaced_as_a_whole_and_its_readers_keep_theirs(tmp_path: Path) -> None:
    saved(tmp_path, "key", matrices(1))
    before = cache(tmp_path).load("key")
    saved(tmp_path, "key", matrices(2))
    assert same(before, matrices(1)) and same(cache(tmp_path).load("key"), matrices(2))


LARGE = (1 << 20, 3 << 19)
"""Matrices of which every one has pages of its own."""


def test_pages_that_are_given_back_come_back(tmp_path: Path) -> None:
    """Only those of one file: the others' stay in memory."""
    files = [saved(tmp_path, key, matrices(seed, LARGE)) for seed, key in enumerate(("mine", "other"))]
    mine, other = (cache(tmp_path).load(path.stem) for path in files)
    sizes = {path.name: path.stat().st_size for path in files}
    before = resident(tmp_path)
    assert before.keys() == sizes.keys() and all(before[name] >= sizes[name] for name in sizes)
    mine.give_back()
    assert resident(tmp_path) == {**before, "mine.packed": 0}
    assert same(mine, matrices(0, LARGE)) and resident(tmp_path)["mine.packed"] >= sum(LARGE)
    assert same(other, matrices(1, LARGE))
    packed_cache.MappedMatrices().give_back()


def test_pages_come_back_from_a_file_that_is_gone_or_replaced(tmp_path: Path) -> None:
    path = saved(tmp_path, "key", matrices(1, LARGE))
    first = cache(tmp_path).load("key")
    saved(tmp_path, "key", matrices(2, LARGE))
    second = cache(tmp_path).load("key")
    path.unlink()
    for found, seed in ((first, 1), (second, 2)):
        found.give_back()
        assert same(found, matrices(seed, LARGE))


def test_memory_that_is_locked_stays(tmp_path: Path) -> None:
    class Locked(mmap.mmap):
        def madvise(self, *_: int) -> None:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    with saved(tmp_path, "key", matrices(1, LARGE)).open("rb") as file:
        mapping = Locked(file.fileno(), 0, access=mmap.ACCESS_READ)
    content = bytes(mapping)
    packed_cache.MappedMatrices(mapping).give_back()
    assert bytes(mapping) == content and resident(tmp_path)["key.packed"] >= sum(LARGE)


def test_memory_without_a_file_is_refused() -> None:
    """Giving it back loses what is in it."""
    memory = mmap.mmap(-1, 1 << 16, flags=mmap.MAP_PRIVATE)
    memory[:] = content = bytes(range(256)) * 256
    with pytest.raises(ValueError, match="can be written"):
        packed_cache.MappedMatrices(memory)
    assert memory[:] == content
    memory.madvise(mmap.MADV_DONTNEED)
    assert memory[:] == bytes(1 << 16)


def damaged_everywhere(content: bytes) -> list[tuple[str, bytes]]:
    """The file cut and changed in every part of it, and files that are something else."""
    flipped = [
        (f"byte {at} changed", content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        for at in (0, 14, 16, 23, 24, 55, 56, 120, len(content) - 4096, len(content) - 1)
    ]
    cut = [(f"{size} bytes", content[:size]) for size in (0, 10, 40, 60, 400, len(content) - 64, len(content) - 1)]
    foreign = [("foreign", b"PK" + bytes(5000)), ("longer", content + bytes(64)), ("swapped", content[:56] * 40)]
    return flipped + cut + foreign


def test_no_damaged_file_is_believed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = saved(tmp_path, "key", matrices(1))
    content = path.read_bytes()
    for what, damaged in damaged_everywhere(content):
        path.write_bytes(damaged)
        caplog.clear()
        assert cache(tmp_path).load("key") == {}, what
        assert len(caplog.records) == 1 and "key.packed is of no use" in caplog.text, what
    path.write_bytes(content)
    assert same(cache(tmp_path).load("key"), matrices(1))


def test_another_version_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, "key", matrices(1))
    monkeypatch.setattr(packed_cache, "_MAGIC", b"bridle packed 2\n")
    assert cache(tmp_path).load("key") == {}


def write_and_read(place: Path, key: str, seed: int, rounds: int) -> None:
    for _ in range(rounds):
        saved(place, key, matrices(seed, (100_000, 64)))
        found = cache(place).load(key)
        assert same(found, matrices(1, (100_000, 64))) or same(found, matrices(2, (100_000, 64)))


def test_processes_that_write_the_same_file_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=write_and_read, args=(tmp_path, "key", 1 + i % 2, 10)) for i in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["key.packed"]


def test_the_oldest_files_are_given_up(tmp_path: Path) -> None:
    for age, key in enumerate(("c", "b", "a")):
        path = saved(tmp_path, key, matrices(1, (1000,)))
        os.utime(path, (1000 - age, 1000 - age))
    size = (tmp_path / "cache/a.packed").stat().st_size
    cache(tmp_path).load("a")
    saved(tmp_path, "d", matrices(1, (1000,)), limit=3 * size)
    assert sorted(path.stem for path in (tmp_path / "cache").iterdir()) == ["a", "c", "d"]
    saved(tmp_path, "large", matrices(1, (9 * size,)), limit=3 * size)
    assert sorted(path.stem for path in (tmp_path / "cache").iterdir()) == ["a", "c", "d"]


def test_what_dead_writers_left_is_removed(tmp_path: Path) -> None:
    directory = tmp_path / "cache"
    directory.mkdir()
    for name, age in (("old", 1_000), ("young", None)):
        (directory / f"{name}.part").write_bytes(b"1")
        if age is not None:
            os.utime(directory / f"{name}.part", (age, age))
    saved(tmp_path, "key", matrices(1))
    assert sorted(path.name for path in directory.iterdir()) == ["key.packed", "young.part"]


def test_a_full_disk_costs_the_cache_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(packed_cache.os, "fsync", full)
    saved(tmp_path, "key", matrices(1))
    assert list((tmp_path / "cache").iterdir()) == [] and cache(tmp_path).load("key") == {}
    assert len(caplog.records) == 1 and "No space left" in caplog.text


def test_a_directory_that_cannot_be_written_or_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "cache").write_bytes(b"a file where the directory should be")
    saved(tmp_path, "key", matrices(1))
    assert cache(tmp_path).load("key") == {}
    assert len(caplog.records) == 2


def weights(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"conv.weight": (20, 4, 3, 3), "q.weight": (24, 16), "k.weight": (8, 16), "bias": (20,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def pack_all(packed: PackedWeights, tensors: Mapping[str, Tensor]) -> list[bytes]:
    """The bytes of a network with a convolution, stacked projections and a gated one."""
    with packed.network(tensors) as given:
        made = [
            packed.matrix([given["conv.weight"]], [1, 3] * 9 if given["q.weight"].dtype == torch.float32 else [4] * 9),
            packed.matrix([given["q.weight"], given["k.weight"]], [16]),
            packed.matrix([given["q.weight"]], [16], gated=True),
        ]
        assert given["bias"] is tensors["bias"]
    return [one.memory.tobytes() for one in made]


def plain(tensors: Mapping[str, Tensor]) -> list[bytes]:
    """The same, packed from the tensors themselves."""
    packed = PackedWeights()
    rows = [tensors["q.weight"], tensors["k.weight"]]
    spans = [1, 3] * 9 if rows[0].dtype == torch.float32 else [4] * 9
    made = [
        packed.matrix([tensors["conv.weight"]], spans),
        packed.matrix(rows, [16]),
        packed.matrix(rows[:1], [16], True),
    ]
    return [one.memory.tobytes() for one in made]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_network_is_packed_once_and_then_mapped(
    tmp_path: Path, stored: torch.dtype, dtype: torch.dtype, no_packing: Callable[[], None]
) -> None:
    """The bits are those of the converted weights, and nothing is converted for it."""
    if dtype == torch.bfloat16 and _core.active_isa() not in ("avx512_bf16", "amx_bf16", "scalar"):
        dtype = torch.float32
    file = {name: tensor.to(stored) for name, tensor in weights(1).items()}
    wanted = plain({name: tensor.to(dtype) for name, tensor in file.items()})
    first = StoredWeights(file, dtype)
    made = PackedWeights(_core.ThreadPool(2), store := cache(tmp_path))
    assert pack_all(made, first) == wanted
    assert pack_all(made, first) == wanted and len(made) == 3
    store.flush()
    no_packing()
    again = StoredWeights({name: tensor.clone() for name, tensor in file.items()}, dtype)
    assert pack_all(PackedWeights(None, cache(tmp_path)), again) == wanted
    assert set(again._converted) <= {"bias"} and set(first._converted) <= {"bias"}


def large(seed: int) -> dict[str, Tensor]:
    """Two matrices of a megabyte each."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(512, 512, generator=generator) for name in ("q.weight", "k.weight")}


def packed_large(packed: PackedWeights, tensors: Mapping[str, Tensor], name: str = "") -> "list[_core.PackedWeights]":
    with packed.network(tensors, name) as given:
        return [packed.matrix([weight], [512]) for weight in given.values()]


def test_a_network_that_rests_leaves_the_memory_if_it_is_mapped(tmp_path: Path) -> None:
    """What this process has packed stays, and so do other networks."""
    made = PackedWeights(None, store := cache(tmp_path))
    packed = [packed_large(made, large(seed), name) for seed, name in enumerate(("mine", "other"))]
    wanted = [[one.memory.tobytes() for one in network] for network in packed]
    store.flush()
    for network in packed:
        made.rest(network)
    assert [[one.memory.tobytes() for one in network] for network in packed] == wanted
    assert resident(tmp_path) == {}
    again = PackedWeights(None, cache(tmp_path))
    mine, other = (packed_large(again, large(seed), name) for seed, name in enumerate(("mine", "other")))
    before = resident(tmp_path)
    assert len(before) == 2 and min(before.values()) >= 2 << 20
    again.rest(mine)
    assert sorted(resident(tmp_path).values()) == [0, max(before.values())]
    assert [[one.memory.tobytes() for one in network] for network in (mine, other)] == wanted


def test_a_network_rests_while_threads_read_it(tmp_path: Path) -> None:
    packed_large(PackedWeights(None, store := cache(tmp_path)), tensors := large(1))
    store.flush()
    mapped = PackedWeights(None, cache(tmp_path))
    matrix, _ = network = packed_large(mapped, tensors)
    x, outs = torch.randn(4, 512), [torch.empty(4, 512) for _ in range(2)]

    def products(out: Tensor) -> int:
        """How many of forty had other bits than the first."""
        pool, found = _core.ThreadPool(1), []
        for _ in range(40):
            _core.linear(pool, matrix, x, out)
            found.append(out.numpy().tobytes())
        return sum(one != found[0] for one in found)

    with ThreadPoolExecutor(2) as threads:
        running = [threads.submit(products, out) for out in outs]
        while not all(one.done() for one in running):
            mapped.rest(network)
            time.sleep(1e-4)  # lets them have the interpreter
    assert [one.result() for one in running] == [0, 0]
    assert all(torch.equal(out, outs[0]) for out in outs)
    torch.testing.assert_close(outs[0], x @ tensors["q.weight"].T, rtol=1e-4, atol=1e-4)


@pytest.fixture
def no_packing(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes packing an error."""

    class Mapped:
        packed_before = staticmethod(_core.PackedWeights.packed_before)

        def __init__(self, *_: object, **__: object) -> None:
            raise AssertionError("packed, not mapped")

    return lambda: monkeypatch.setattr(_core, "PackedWeights", Mapped)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_phases_have_names_of_their_own(tmp_path: Path, stored: torch.dtype, no_packing: Callable[[], None]) -> None:
    """Beside the nine taps that they are sums of."""

    def pack(packed: PackedWeights) -> list[bytes]:
        with packed.network(StoredWeights(file, torch.float32)) as given:
            weight = given["conv.weight"]
            made = [packed.matrix([weight], [4] * 9), *packed.phases(weight, [4])]
        return [one.memory.tobytes() for one in made]

    file = {name: tensor.to(stored) for name, tensor in weights(1).items()}
    wide, plain_weights = file["conv.weight"].float(), PackedWeights()
    nine, four = plain_weights.matrix([wide], [4] * 9), plain_weights.phases(wide, [4])
    wanted = [one.memory.tobytes() for one in (nine, *four)]
    store = cache(tmp_path)
    assert pack(PackedWeights(_core.ThreadPool(2), store)) == wanted and len(set(wanted)) == 5
    store.flush()
    (kept,) = (tmp_path / "cache").iterdir()
    assert len(cache(tmp_path).load(kept.stem)) == 5
    no_packing()
    assert pack(PackedWeights(None, cache(tmp_path))) == wanted


def test_packing_is_noticed(tmp_path: Path, no_packing: Callable[[], None]) -> None:
    """The control of the test above."""
    no_packing()
    with pytest.raises(AssertionError, match="packed, not mapped"):
        pack_all(PackedWeights(None, cache(tmp_path)), weights(1))


@pytest.mark.parametrize("name", ["conv.weight", "q.weight", "k.weight"])
def test_changed_weights_are_packed_anew(tmp_path: Path, name: str) -> None:
    pack_all(PackedWeights(None, store := cache(tmp_path)), weights(1))
    store.flush()
    changed = weights(1)
    changed[name].view(-1)[3] += 1
    assert pack_all(PackedWeights(None, cache(tmp_path)), changed) == plain(changed) != plain(weights(1))


def test_equal_bytes_of_another_shape_or_type_are_other_weights(tmp_path: Path) -> None:
    for tensor in (torch.arange(12.0).view(3, 4), torch.arange(12.0).view(4, 3), torch.arange(12.0).view(2, 6)):
        packed = PackedWeights(None, store := cache(tmp_path))
        with packed.network({"w": tensor}) as given:
            made = packed.matrix([given["w"]], [tensor.shape[1]])
        store.flush()
        assert made.memory.tobytes() == PackedWeights().matrix([tensor], [tensor.shape[1]]).memory.tobytes()
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_another_variant_has_a_file_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for isa in ("scalar", _core.active_isa()):
        monkeypatch.setenv("BRIDLE_FORCE_ISA", isa)
        store = cache(tmp_path)
        assert pack_all(PackedWeights(None, store), weights(1)) == plain(weights(1))
        store.flush()
    assert len(list((tmp_path / "cache").iterdir())) == (1 if _core.active_isa() == "scalar" else 2)


def test_what_a_later_recording_needs_is_added(tmp_path: Path) -> None:
    packed = PackedWeights(None, store := cache(tmp_path))
    with packed.network(tensors := weights(1)) as given:
        packed.matrix([given["q.weight"]], [16])
    store.flush()
    wanted = pack_all(packed, tensors)
    store.flush()
    (file,) = (tmp_path / "cache").iterdir()
    assert len(cache(tmp_path).load(file.stem)) == 4
    assert pack_all(PackedWeights(None, cache(tmp_path)), weights(1)) == wanted


def test_networks_that_share_weights_have_files_of_their_own(tmp_path: Path) -> None:
    packed, tensors = PackedWeights(None, store := cache(tmp_path)), weights(1)
    for name, key in (("text", "q.weight"), ("image", "k.weight")):
        with packed.network(tensors, name) as given:
            packed.matrix([given[key]], [16])
    store.flush()
    assert [len(cache(tmp_path).load(file.stem)) for file in (tmp_path / "cache").iterdir()] == [1, 1]


def test_odd_widths_in_pairs_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDLE_FORCE_ISA", "scalar")
    tensors, made = {"w": torch.randn(6, 5).bfloat16()}, []
    for _ in range(2):
        packed = PackedWeights(None, store := cache(tmp_path))
        with packed.network(tensors) as given:
            made.append(packed.matrix([given["w"]], [2, 3]).memory.tobytes())
        store.flush()
    assert made[0] == made[1] == PackedWeights().matrix([tensors["w"]], [2, 3]).memory.tobytes()


def test_values_of_a_matrix_that_has_none() -> None:
    packed, tensors = PackedWeights(), weights(1)
    with packed.network(tensors) as given:
        view = given["q.weight"][3:].T
        assert view.is_meta and packed.values(view) is tensors["q.weight"]
        assert packed.values(torch.empty(2, device="meta")) is None
    assert packed.values(view) is None


def test_small_networks_and_failed_recordings_leave_nothing(tmp_path: Path) -> None:
    size = sum(tensor.nbytes for tensor in weights(1).values() if tensor.ndim > 1)
    pack_all(PackedWeights(None, small := cache(tmp_path, smallest=size + 1)), weights(1))
    small.flush()
    failing = PackedWeights(None, store := cache(tmp_path, smallest=size))
    with pytest.raises(RuntimeError), failing.network(weights(1)) as given:
        failing.matrix([given["q.weight"]], [16])
        raise RuntimeError
    store.flush()
    assert not (tmp_path / "cache").exists()
    pack_all(failing, weights(1))
    store.flush()
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_damaged_file_is_packed_anew_and_written_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pack_all(PackedWeights(None, store := cache(tmp_path)), weights(1))
    store.flush()
    (file,) = (tmp_path / "cache").iterdir()
    good = file.read_bytes()
    file.write_bytes(good[:-1] + bytes([good[-1] ^ 255]) if good[-1] else good[:-700])
    with caplog.at_level(logging.WARNING):
        store = cache(tmp_path)
        assert pack_all(PackedWeights(None, store), weights(1)) == plain(weights(1))
    store.flush()
    assert len(caplog.records) == 1 and file.read_bytes() == good
