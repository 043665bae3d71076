"""The page about attention: its programs run, and do what it says."""

import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from attention_cases import relative

PAGE = Path(__file__).parents[2] / "docs" / "attention.md"


def test_programs_of_the_page_run() -> None:
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    results = []
    for program in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(program, names)
        results.append(names["out"])
    plain, image, edited, captured, shifted = results
    q, k, v = (names[name].transpose(1, 2) for name in "qkv")
    assert relative(plain, F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)) < 1e-6
    assert torch.equal(image[1], plain[1]) and relative(image[[0, 2]], plain[[0, 2]]) > 0.1
    assert torch.equal(edited[:2], plain[:2]) and relative(edited[2], plain[2]) > 0.1
    assert torch.equal(captured, plain) and names["heat"].all()
    assert relative(shifted, plain) > 0.01
