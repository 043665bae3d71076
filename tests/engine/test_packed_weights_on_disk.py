"""The CPU backend's packed weights on disk: a second engine maps them, and only for the same weights."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import bridle
from bridle.backends import cache_on_disk
from bridle.backends.cpu import CpuBackend
from bridle.errors import RequestError
from bridle_kernels import packed_cache
from mapped_memory import resident

UNET = "unet/diffusion_pytorch_model.safetensors"
NETWORKS = 5
"""Text encoder, decoder, and of the U-Net's file three: keys and values of the text, time table, U-Net."""
OF_UNET = 3


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of this test's own that keeps the smallest networks too."""
    monkeypatch.setenv("BRIDLE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(packed_cache.PackedCache.__init__, "__defaults__", (0, 2))
    return tmp_path / "cache/packed"


def picture(folder: Path, dtype: str = "float32") -> tuple[torch.Tensor, CpuBackend]:
    engine = bridle.load(folder, backend="cpu", dtype=dtype)
    result = engine.sample(bridle.Request("a cat", num_inference_steps=2, width=64, height=64, output_type="np"))
    backend = engine.backend
    assert isinstance(result, bridle.Result) and isinstance(backend, CpuBackend)
    store = backend._packed._cache
    if store is not None:
        store.flush()
    return torch.as_tensor(result.images), backend


def files(place: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in place.iterdir()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_second_engine_maps_what_the_first_packed(
    folder: Path, cache: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = picture(folder, dtype)
    before = files(cache)
    assert len(before) == NETWORKS
    second, backend = picture(folder, dtype)
    assert torch.equal(first, second) and files(cache) == before
    matrices = [name for name, tensor in backend.model.unet.tensors.stored.items() if tensor.ndim == 4]
    assert matrices and not set(matrices) & set(backend.model.unet.tensors._converted)
    monkeypatch.setenv("BRIDLE_CACHE_DIR", "off")
    without, backend = picture(folder, dtype)
    assert torch.equal(first, without) and backend._packed._cache is None


def test_only_the_unet_stays_in_memory(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs once for a request gives its mapped pages back, and has them again for the next one."""

    def sample() -> torch.Tensor:
        request = bridle.Request("a cat", num_inference_steps=2, width=64, height=64, output_type="np")
        result = engine.sample(request)
        assert isinstance(result, bridle.Result)
        return torch.as_tensor(result.images)

    def in_memory() -> list[str]:
        return [name for name, size in resident(cache).items() if size > 0]

    wanted, _ = picture(folder)
    engine = bridle.load(folder, backend="cpu", dtype="float32")
    assert torch.equal(sample(), wanted) and len(resident(cache)) == NETWORKS
    (unet,) = in_memory()
    assert torch.equal(sample(), wanted) and in_memory() == [unet]
    monkeypatch.setattr(packed_cache.MappedMatrices, "give_back", lambda _: None)
    assert torch.equal(sample(), wanted) and len(in_memory()) == NETWORKS


def test_changed_weights_are_not_served(folder: Path, cache: Path, tmp_path: Path) -> None:
    """Though the file has its old name, size and times."""
    mine = Path(shutil.copytree(folder, tmp_path / "model"))
    first, _ = picture(mine)
    times = (mine / UNET).stat()
    tensors = load_file(mine / UNET)
    tensors["conv_in.weight"] = -tensors["conv_in.weight"]
    save_file(tensors, tmp_path / "new.safetensors")
    (mine / UNET).write_bytes((tmp_path / "new.safetensors").read_bytes())
    os.utime(mine / UNET, ns=(times.st_atime_ns, times.st_mtime_ns))
    second, _ = picture(mine)
    assert not torch.equal(first, second) and len(files(cache)) == NETWORKS + OF_UNET


def test_a_file_that_is_replaced_after_loading_is_not_read(folder: Path, cache: Path, tmp_path: Path) -> None:
    mine = Path(shutil.copytree(folder, tmp_path / "model"))
    wanted, _ = picture(mine)
    shutil.rmtree(cache)
    engine = bridle.load(mine, backend="cpu", dtype="float32")
    save_file({name: -tensor for name, tensor in load_file(mine / UNET).items()}, tmp_path / "new.safetensors")
    (tmp_path / "new.safetensors").replace(mine / UNET)
    result = engine.sample(bridle.Request("a cat", num_inference_steps=2, width=64, height=64, output_type="np"))
    assert torch.equal(torch.as_tensor(result.images), wanted)


def test_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BRIDLE_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = cache_on_disk.packed_cache()
    assert found is not None and found._directory == tmp_path / "bridle/packed"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    found = cache_on_disk.packed_cache()
    assert found is not None and found._directory == tmp_path / "home/.cache/bridle/packed"
    monkeypatch.setenv("BRIDLE_CACHE_LIMIT", "much")
    with pytest.raises(RequestError, match="BRIDLE_CACHE_LIMIT"):
        cache_on_disk.packed_cache()
    assert not list(tmp_path.iterdir())
