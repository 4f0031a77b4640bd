"""What Triton compiles at run time is what `make aot` has checked."""

import os
import subprocess
import sys

from .kernels import needs_interpreter

pytestmark = needs_interpreter


def test_no_call_compiles_what_was_not_checked_ahead_of_time():
    """Whatever the map's size and the tensors' strides and addresses: by Triton's own cache key."""
    process = subprocess.run(
        # in a process of its own, whose kernels are not the interpreter's
        [sys.executable, "-m", "tests.variants"],
        env=os.environ | {"TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert " launches, 0 variants that are not compiled" in process.stdout
