"""`make gpu`, rehearsed on the CPU: one step, and a table whatever happens."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_a_rehearsal_of_two_steps(tmp_path):
    run = str(ROOT / "benchmarks/gpu/run.py")
    command = [sys.executable, run, "--rehearse", "--source", str(ROOT),
               "--site", str(ROOT), "--out", str(tmp_path), "--budget", "100",
               "--steps", "environment,ceilings"]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    kinds = [json.loads(line)["kind"] for line in lines]
    assert {"environment", "ceiling", "step"} <= set(kinds), result.stdout
    assert "ceiling" in (tmp_path / "table.md").read_text()
