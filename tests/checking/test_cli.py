"""`python -m pvt_kernels check` from end to end, on a few jobs."""

import json
import re

import pytest

from pvt_kernels.backends.cpu import attention
from pvt_kernels.checking import cli, jobs
from pvt_kernels.checking.cases import layer_case
from pvt_kernels.checking.finding import FAILED
from pvt_kernels.checking.jobs import Plan
from pvt_kernels.cli import main

TINY = Plan("cpu", (64, 64), 1, ("fp32",), ("cuda", "cpu"), "fp32")


def few_jobs(plan):
    """One of each kind."""
    found = jobs.jobs(plan)
    several = [job for job in found if "same bits" in job.label or "memory of stage 4" in job.label]
    # the last compiles a layer
    return [found[0], *several, found[-5]]


def broken_jobs(plan):
    """With a kernel that is off by one part in a hundred."""
    right = attention.forward

    def wrong(*arguments):
        o, lse = right(*arguments)
        return 1.01 * o, lse

    attention.forward = wrong
    return [job for job in jobs.jobs(plan) if job.label.startswith("attention B 1, N 129")]


def failing_jobs(plan):
    def fail():
        raise RuntimeError("an illegal memory access")

    case = layer_case(1, 6, 7, 32, 1, 1)
    good = jobs.Job("good", lambda: jobs.check_errors(plan, case, "fp32"))
    return [jobs.Job("bad", fail), good]


@pytest.fixture
def check(monkeypatch, tmp_path):
    def run(make_jobs):
        monkeypatch.setattr(cli, "plan_for", lambda device, quick: TINY)
        monkeypatch.setattr(cli, "jobs", make_jobs)
        path = tmp_path / "check.json"
        status = main(["check", "--device", "cpu", "--quick", "--json", str(path)])
        return status, json.loads(path.read_text())

    return run


def test_a_check_that_passes(check, capsys):
    status, record = check(few_jobs)
    assert status == 0 and record["passed"] is True
    assert record["environment"]["versions"]["torch"]
    assert record["environment"]["cpu_kernels"]
    assert record["plan"]["backends"] == ["cuda", "cpu"]
    assert any(f["figures"].get("errors", {}).get("dq") for f in record["findings"])
    printed = capsys.readouterr().out
    assert re.search(r"^\[1/8\] attention B 1, N 129", printed, re.MULTILINE)
    for heading in ("Errors", "Behaviour", "Memory", "Layers of PVT, fp32", "Not run"):
        assert re.search(f"^{heading}", printed, re.MULTILINE), heading
    # in a note, which breaks into lines
    assert "not an NVIDIA GPU" in " ".join(printed.split())
    (memory,) = [f for f in record["findings"] if f["kind"] == "memory" and f["figures"]]
    assert memory["figures"]["added_bytes"] > 0
    # of the table, that a bug report gets
    assert max(map(len, printed.splitlines())) <= 100
    assert re.search(r"^PASSED: \d+ passed, \d+ not run; \d+ s$", printed, re.MULTILINE)


def test_a_failure_is_the_exit_status_and_the_rest_runs(check, capsys):
    status, record = check(failing_jobs)
    assert status == 1 and record["passed"] is False
    (failed,) = [f for f in record["findings"] if f["status"] == FAILED]
    assert failed["what"] == "bad"
    assert failed["detail"] == "RuntimeError: an illegal memory access"
    assert any(f["status"] == "passed" for f in record["findings"])
    printed = capsys.readouterr().out
    assert "FAILED: bad: RuntimeError: an illegal memory access" in printed
    assert re.search(r"^FAILED: 1 passed, 1 failed", printed, re.MULTILINE)


def test_a_broken_kernel_is_found(check, monkeypatch, capsys):
    # this process makes the list too: there it is undone
    monkeypatch.setattr(attention, "forward", attention.forward)
    status, record = check(broken_jobs)
    assert status == 1
    failed = [f for f in record["findings"] if f["status"] == FAILED]
    assert failed and all(f["backend"] == "cpu" and f["kind"] == "errors" for f in failed)
    for finding in failed:
        error, pytorchs, allowed = finding["figures"]["errors"]["o"]
        assert error == pytest.approx(0.01, rel=0.01) and pytorchs < allowed < error
    assert "FAILED: attention, B 1, N 129, M 65, 1 x 64, cpu, fp32: o: error" in (
        capsys.readouterr().out
    )


def test_the_file_must_be_in_a_folder(capsys):
    with pytest.raises(SystemExit) as end:
        main(["check", "--json", "/nowhere/at/all.json"])
    assert end.value.code == 2
    wanted = (
        "argument --json: given '/nowhere/at/all.json', accepted the name of a file in a folder"
    )
    assert wanted in capsys.readouterr().err
