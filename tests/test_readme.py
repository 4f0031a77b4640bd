"""The README's Python runs as it stands."""

import re
from pathlib import Path

import pytest
import torch

from pvt_kernels import models

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_examples_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": models.pvt_small().state_dict()}, "pvt_small.pth")
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    names = {}
    with torch.no_grad():
        exec("\n".join(blocks), names)
    assert names["out"].shape == (2, 60800, 64)
    assert [tuple(m.shape[-2:]) for m in names["maps"]] == [
        (200, 304),
        (100, 152),
        (50, 76),
        (25, 38),
    ]
    assert "attention(device=cpu" in capsys.readouterr().out


@pytest.mark.parametrize("path", re.findall(r"\]\(([^)#:]+)\)", README))
def test_every_linked_file_is_there(path):
    assert (Path(__file__).parent.parent / path).exists()
