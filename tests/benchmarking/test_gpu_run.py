"""`make gpu`, rehearsed on the CPU: a table whatever becomes of a step."""

import argparse
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
GPU = ROOT / "benchmarks" / "gpu"

# modules of steps, which end in every way
STEPS = {
    "good": "from steps.record import record\nrecord('ceiling', name='sky', value=1)",
    "dies": "import ctypes\nfrom steps import record\nctypes.string_at(0)",
    "fails": "raise SystemExit('no compiler')",
    "hangs": "import time\nfrom steps import record\ndef never():\n  time.sleep(60)\nnever()",
}


@pytest.fixture(scope="module")
def gpu_run():
    sys.path.insert(0, str(GPU))
    try:
        spec = importlib.util.spec_from_file_location("gpu_run", GPU / "run.py")
        module = importlib.util.module_from_spec(spec)
        # where its dataclasses look for their types
        sys.modules["gpu_run"] = module
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(GPU))
        del sys.modules["gpu_run"], sys.modules["report"]


@pytest.fixture
def run(gpu_run, tmp_path, monkeypatch):
    """Runs the steps of these names; returns the records, and the table."""
    folder = tmp_path / "kit" / "steps"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "record.py").write_text((GPU / "steps" / "record.py").read_text())
    for name, code in STEPS.items():
        (folder / f"{name}.py").write_text(code)
    monkeypatch.setattr(gpu_run, "HERE", folder.parent)

    def run(names, budget=60.0, limit=20.0):
        out = tmp_path / "out"
        arguments = argparse.Namespace(
            source=ROOT, out=out, budget=budget, site=None, work=tmp_path / "work", rehearse=False
        )
        parent = gpu_run.Parent(arguments)
        parent.run([gpu_run.Step(name, name, limit) for name in names])
        parent.close()
        lines = (out / "results.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines], (out / "table.md").read_text()

    return run


def of_kind(records, kind):
    return [record for record in records if record["kind"] == kind]


def test_a_step_that_dies_leaves_its_trace_and_the_next_one_runs(run):
    records, table = run(["dies", "fails", "good"])
    endings = {r["name"]: r["ending"] for r in of_kind(records, "step")}
    assert endings == {"dies": "SIGSEGV", "fails": "status 1", "good": "status 0"}
    (trace,) = of_kind(records, "trace")
    assert trace["name"] == "dies"
    assert trace["text"].startswith("Fatal Python error: Segmentation fault")
    assert "string_at" in trace["text"] and "dies.py" in trace["text"]
    assert of_kind(records, "ceiling")
    assert "| dies | SIGSEGV | False |" in table and "sky" in table


def test_a_step_that_hangs_is_stopped_and_says_where_it_was(run):
    records, table = run(["hangs", "good"], limit=4.0)
    hung, good = of_kind(records, "step")
    assert hung["stopped"] and not good["stopped"]
    (trace,) = of_kind(records, "trace")
    assert "in never" in trace["text"]
    assert "| hangs |" in table


def test_no_step_begins_once_the_budget_is_used_up(run):
    records, _ = run(["good", "good"], budget=0.0)
    reasons = [record["reason"] for record in of_kind(records, "not run")]
    assert reasons == ["the budget is used up"] * 2


def test_the_table_of_a_run_has_every_kind_of_figure(gpu_run):
    finding = {"kind": "finding", "variant": "", "backend": "cuda", "dtype": "fp16", "detail": "x"}
    entries = [
        {"step": "check", **finding, "about": "memory", "what": "layer of stage 1", "case": "",
         "status": "passed"},
        {"step": "check", **finding, "about": "errors", "what": "attention", "case": "B 1",
         "status": "failed"},
        {"step": "check", **finding, "about": "errors", "what": "attention", "case": "B 2",
         "status": "exceeded"},
        {"step": "graphs", "kind": "graph", "contender": "cuda", "stage": 1, "ok": True},
        {"step": "ncu", "kind": "counters", "backend": "cuda", "kernel": "fold", "ns": "7"},
        {"step": "run", "kind": "step", "name": "check", "ending": "status 0", "seconds": 1.5},
    ]  # fmt: skip
    table = gpu_run.report.table(entries)
    for line in (
        "| cuda | layer of stage 1 | fp16 | passed | x |",
        "|  | errors | cuda | fp16 | 0/2 | 1 | attention B 1: x |",
        "| cuda | 1 | - | True | - | - | - | - |",
        "| cuda | fold | 7 |",
        "| check | status 0 | - | 1.5 |",
    ):
        assert line in table, table


def test_a_rehearsal_of_two_steps(tmp_path):
    command = [sys.executable, str(GPU / "run.py"), "--rehearse", "--source", str(ROOT),
               "--site", str(ROOT), "--out", str(tmp_path), "--budget", "100",
               "--steps", "environment,ceilings"]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    kinds = [json.loads(line)["kind"] for line in lines]
    assert {"environment", "ceiling", "step"} <= set(kinds), result.stdout
    assert "ceiling" in (tmp_path / "table.md").read_text()


def test_counters_are_read_from_what_ncu_prints(tmp_path):
    printed = "\n".join([
        "==PROF== Connected",
        '"ID","Kernel Name","gpu__time_duration.sum","launch__grid_size"',
        '"","","ns","block"',
        '"0","fold_kernel","7,000","19"',
        "12 calls",
    ])  # fmt: skip
    code = "import sys; from steps.ncu import rows_of; print(rows_of(sys.stdin.read()))"
    result = subprocess.run([sys.executable, "-c", code], input=printed, cwd=GPU,
                            capture_output=True, text=True, check=True)  # fmt: skip
    assert result.stdout.strip() == "[{'kernel': 'fold_kernel', 'ns': '7,000', 'blocks': '19'}]"
