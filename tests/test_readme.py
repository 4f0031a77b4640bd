"""The README and docs/ are true: their Python runs, and what they name is there."""

import re
from pathlib import Path

import pytest
import torch

from pvt_kernels import models
from pvt_kernels.cli import main

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in (README, *(ROOT / "docs").glob("*.md"))
}
EXAMPLES = {
    name: re.findall(r"```python\n(.*?)```", text, re.DOTALL) for name, text in PAGES.items()
}
FOLDERS = ("pvt_kernels", "csrc", "tests", "benchmarks", "python", "docs")


def found(pattern: str) -> list[str]:
    """What a pattern's group matches on all pages, once each."""
    return sorted({match for text in PAGES.values() for match in re.findall(pattern, text)})


@pytest.mark.parametrize("page", [name for name, blocks in EXAMPLES.items() if blocks])
def test_the_examples_run(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": models.pvt_small().state_dict()}, "pvt_small.pth")
    names, example = {}, "\n".join(EXAMPLES[page])
    with torch.no_grad():
        exec(example, names)
    printed = capsys.readouterr().out
    if "out = " in example:
        assert names["out"].shape == (2, 60800, 64)
    if "maps = " in example:
        shapes = [tuple(m.shape[-2:]) for m in names["maps"]]
        assert shapes == [(200, 304), (100, 152), (50, 76), (25, 38)]
    if "patch(" in example:
        assert "swapped" in printed
    if "explain(" in example:
        assert "attention(device=cpu" in printed


def test_the_readme_is_short():
    assert README.stat().st_size < 8000


@pytest.mark.parametrize("page", PAGES)
def test_every_linked_file_is_there(page):
    for link in re.findall(r"\]\(([^)#:]+)[^):]*\)", PAGES[page]):
        assert ((ROOT / page).parent / link).exists(), link


def test_every_path_is_there():
    """Those between backquotes that begin with a folder of the repository's."""
    paths = found(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]*)`")
    assert len(paths) > 10
    # where git-ignored runs go, and what is a name's place
    missing = [p for p in paths if not (ROOT / p).exists() and not re.search("[A-Z]{4}|/runs/", p)]
    assert missing == []


@pytest.mark.parametrize("line", found(r"python -m pvt_kernels\s([a-z][^`\n|#]*)"))
def test_every_command_and_option_is_known(line, capsys):
    command, *words = line.split()
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0, capsys.readouterr().err
    options = capsys.readouterr().out
    for word in words:
        assert not word.startswith("--") or re.search(rf"{word}\b", options), word


def test_every_target_and_extra_is_known():
    makefile = (ROOT / "Makefile").read_text()
    targets = found(r"make\s([a-z][a-z-]*)[`\n]")
    assert targets
    assert [t for t in targets if not re.search(rf"^{t}:", makefile, re.MULTILINE)] == []
    project = (ROOT / "pyproject.toml").read_text()
    extras = found(r"'\.\[([a-z]+)\]'")
    assert extras
    assert [e for e in extras if not re.search(rf"^{e} = \[", project, re.MULTILINE)] == []
