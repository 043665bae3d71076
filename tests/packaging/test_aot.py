"""Ahead-of-time compilation of GPU kernels, without a GPU."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bridle.cli import app

pytest.importorskip("triton", reason="Triton has wheels for Linux only")

import triton
import triton.language as tl

from bridle_exporters.aot import ARCHITECTURES, SHARED_LIMIT, Compiled, checked, compile_variant, main, print_table
from bridle_kernels.kernel_bundle import SCRATCH
from bridle_kernels.triton_kernels import variants
from bridle_kernels.triton_variant import Variant

CHOSEN = ["upsample_fp16", "group_norm_silu_fp32", "residual_add_4_bf16", "guide_step_blend_fp16"]
SIZES = {"i32": 4, "fp32": 4, "i64": 8}


def test_compiles_without_spills(capsys: Any) -> None:
    main(["--kernel", "geglu.triton", "--kernel", "resample.triton", "--arch", "80", "--arch", "90", "--jobs", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[1:]] == [
        "geglu_fp16",
        "geglu_fp32",
        "upsample_fp16",
        "upsample_fp32",
    ]
    for line in lines[1:]:
        assert [figure.split()[0] for figure in line.split(": ")[1].split(", ")] == ["sm_80", "sm_90"]


def test_a_table_names_what_spills(capsys: Any) -> None:
    bad = Compiled("k", "f", 80, 255, 8, 0, 1)
    assert print_table(iter([(bad, b""), (Compiled("k", "f", 90, 99, 0, 7, 1), b"")])) == [bad.problem]
    assert "k: sm_80 255/8/0, sm_90 99/0/7" in capsys.readouterr().out


def test_variants_are_named_once_and_type_every_argument() -> None:
    every = variants()
    assert len({variant.name for variant in every}) == len(every)
    for variant in every:
        assert set(variant.signature) == set(variant.types) | set(variant.constants)
        assert not set(variant.types) & set(variant.constants)
        assert set(variant.multiples) <= set(variant.types)


def test_a_check_compiles_every_kernel() -> None:
    assert {variant.kernel for variant in variants() if checked(variant)} == {variant.kernel for variant in variants()}


@pytest.mark.parametrize("name", [*CHOSEN, "attention_pieces_8_fp16", "attention_capture_heads_8_fp16"])
def test_a_kernel_takes_its_arguments_and_two_pointers(name: str) -> None:
    """What the driver is handed: the sizes of parameters that the compiler wrote into the cubin."""
    (variant,) = (variant for variant in variants() if variant.name == name)
    _, cubin = compile_variant(variant, 87)
    kinds = [kind for kind in variant.signature.values() if kind != "constexpr"]
    flat = [one for kind in kinds for one in ([kind] if isinstance(kind, str) else kind)]
    assert parameter_sizes(cubin) == [SIZES.get(kind, 8) for kind in flat] + [8] * SCRATCH


def parameter_sizes(cubin: bytes) -> list[int]:
    """Bytes of each parameter, from the records EIATTR_KPARAM_INFO (0x17): ordinal, offset, size in the top 14 bits."""
    found = {}
    at = cubin.find(b"\x04\x17\x0c\x00")
    while at >= 0:
        body = cubin[at + 4 : at + 16]
        found[int.from_bytes(body[4:6], "little")] = int.from_bytes(body[8:12], "little") >> 18
        at = cubin.find(b"\x04\x17\x0c\x00", at + 1)
    return [found[place] for place in sorted(found)]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_what_spills_or_does_not_fit_is_a_problem(arch: int) -> None:
    limit = SHARED_LIMIT[arch]
    assert Compiled("k", "f", arch, 255, 0, limit, 1).problem is None
    assert f"sm_{arch}" in str(Compiled("k", "f", arch, 255, 0, limit + 1, 1).problem)
    assert "spills 8 bytes" in str(Compiled("k", "f", arch, 255, 8, 0, 1).problem)
    assert Compiled("k", "f", arch, 255, 8, 0, 1, may_spill=True).problem is None
    assert all("gradient" in variant.name for variant in variants() if variant.may_spill)


@triton.jit
def _kernel_of_sums(x, out, KIND: tl.constexpr):
    value = tl.load(x + tl.program_id(0))
    if KIND == 0:
        tl.store(out, value)
    if KIND == 1:
        tl.atomic_add(out, value)
    if KIND == 2:
        tl.store(out + 1, tl.atomic_add(out, value))
    if KIND == 3:
        tl.inline_asm_elementwise("red.global.add.f32 [$1], 1.0; mov.u32 $0, 0;", "=r,l", [out], tl.int32, False, 1)


@pytest.mark.parametrize(("kind", "found"), [(0, 0), (1, 1), (2, 1), (3, 1)], ids=["none", "red", "atom", "assembly"])
def test_an_atomic_operation_is_a_problem(kind: int, found: int) -> None:
    variant = Variant(f"sums_{kind}", _kernel_of_sums, {"x": "*fp32", "out": "*fp32"}, {"KIND": kind}, num_warps=1)
    compiled, _ = compile_variant(variant, 80)
    assert compiled.atomics == found
    assert (compiled.problem is None) == (found == 0) and ("atomic" in str(compiled.problem)) == (found > 0)


def test_export_writes_what_the_manifest_says(tmp_path: Path) -> None:
    command = ["export-kernels", str(tmp_path / "out"), "--arch", "sm_87", "--only", "upsample_fp16"]
    outcome = CliRunner().invoke(app, command)
    assert outcome.exit_code == 0, outcome.output
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["arch"] == "sm_87" and len(manifest["kernels"]) == 1
    (row,) = manifest["kernels"]
    assert row["name"] == "upsample_fp16" and row["spills"] == 0 and row["num_warps"] == 4 and row["registers"] > 0
    assert row["sha256"] == sha256((tmp_path / "out/upsample_fp16.cubin").read_bytes()).hexdigest()
    refused = CliRunner().invoke(app, ["export-kernels", str(tmp_path / "no"), "--arch", "sm_70"])
    assert refused.exit_code == 2 and "sm_87" in refused.output and not (tmp_path / "no").exists()
