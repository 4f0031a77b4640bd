"""`python -m pvt_kernels check` from end to end, on a few jobs."""

import json
import re

import pytest

from pvt_kernels.checking import cli, jobs
from pvt_kernels.checking.cases import layer_case
from pvt_kernels.checking.finding import FAILED
from pvt_kernels.checking.jobs import Plan
from pvt_kernels.cli import main

TINY = Plan("cpu", (64, 64), 1, ("fp32",), ("cuda", "cpu"), "fp32")


def few_jobs(plan):
    """One of each kind."""
    found = jobs.jobs(plan)
    # the last compiles a layer
    return [found[0], *(job for job in found if "same bits" in job.label), found[-5]]


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
    assert re.search(r"^\[1/6\] attention B 1, N 129", printed, re.MULTILINE)
    for heading in ("Errors", "Behaviour", "Layers of PVT, fp32", "Not run"):
        assert re.search(f"^{heading}", printed, re.MULTILINE), heading
    assert "not an NVIDIA GPU" in printed
    assert re.search(r"^PASSED: \d+ passed, 0 failed, \d+ not run; \d+ s$", printed, re.MULTILINE)


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


def test_the_file_must_be_in_a_folder(capsys):
    with pytest.raises(SystemExit) as end:
        main(["check", "--json", "/nowhere/at/all.json"])
    assert end.value.code == 2
    wanted = (
        "argument --json: given '/nowhere/at/all.json', accepted the name of a file in a folder"
    )
    assert wanted in capsys.readouterr().err
