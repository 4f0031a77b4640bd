"""Text files are read and written in the encoding that the code names, whatever the locale is."""

import ast
from pathlib import Path

import pvt_kernels

PACKAGE = Path(pvt_kernels.__file__).parent


def opens_text(call):
    """Whether a call opens a file as text: open(...), read_text or write_text."""
    name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", None)
    if name == "open" and isinstance(call.func, ast.Name):
        modes = [*call.args[1:2], *(k.value for k in call.keywords if k.arg == "mode")]
        return not any(isinstance(m, ast.Constant) and "b" in m.value for m in modes)
    return name in ("read_text", "write_text")


def test_every_text_file_has_its_encoding():
    calls = [
        (path.relative_to(PACKAGE), call.lineno, {keyword.arg for keyword in call.keywords})
        for path in PACKAGE.rglob("*.py")
        for call in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(call, ast.Call) and opens_text(call)
    ]
    assert len(calls) > 5
    assert [(str(path), line) for path, line, keywords in calls if "encoding" not in keywords] == []
