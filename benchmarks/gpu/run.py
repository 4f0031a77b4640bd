"""Everything that is checked and measured on a GPU, one process a step; results whatever happens.

Standard library only. Every step has its own time limit and writes its records as they come; a
step that fails, crashes or hangs is recorded, and the next one runs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import report

HERE = Path(__file__).resolve().parent
# after the budget, running steps may end within this many seconds
GRACE = 15.0
LEAST = 8.0
# times as long may a step take on the CPU, where kernels are interpreted
REHEARSAL = 6
TAIL = 12_000
# how Python's faulthandler begins: of a crash, and of a step that is about to be stopped
TRACES, TRACE_LINES = ("Fatal Python error", "Timeout ("), 120
RESULTS, LOG, TABLE = "results.jsonl", "log.txt", "table.md"


@dataclass(frozen=True)
class Step:
    """`python -m steps.MODULE ARGUMENTS`.

    Attributes:
        limit: seconds that it may take.
        reserve: seconds that are kept for the steps that must not be dropped after it.
        package: whether it needs the package; what doesn't may run while that is built.
    """

    name: str
    module: str
    limit: float
    reserve: float = 0.0
    package: bool = True
    arguments: tuple[str, ...] = ()


# by worth: where the time is short, the last ones are not run
STEPS = (
    Step("build", "build", 200, 75, package=False, arguments=("--source", "{source}")),
    Step("environment", "environment", 40),
    Step("check", "check", 180, 60),
    Step("graphs", "graphs", 75, 30),
    Step("core", "measure", 60, 15, arguments=("core",)),
    Step("layer", "measure", 90, arguments=("layer",)),
    Step("models", "measure", 90, arguments=("models",)),
    Step("ceilings", "ceilings", 20),
    Step("treat_as", "treat_as", 150, arguments=("--source", "{source}")),
    Step("sanitizer", "sanitizer", 100),
    Step("ncu", "ncu", 60),
)


class Parent:
    def __init__(self, arguments: argparse.Namespace) -> None:
        self.begin = time.time()
        self.arguments = arguments
        self.end = self.begin + arguments.budget
        self.out = arguments.out.resolve()
        self.out.mkdir(parents=True, exist_ok=True)
        self.work = arguments.work or Path(tempfile.mkdtemp(prefix="gpu-run-"))
        self.work = self.work.resolve()
        self.work.mkdir(parents=True, exist_ok=True)
        self.running: dict[str, tuple[Step, subprocess.Popen, float, float]] = {}

    def record(self, kind: str, **fields: object) -> None:
        entry = {"step": "run", "kind": kind, "t": round(time.time() - self.begin, 1), **fields}
        with open(self.out / RESULTS, "a") as file:
            file.write(json.dumps(entry, default=str) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def environment(self, step: Step, deadline: float) -> dict[str, str]:
        site = self.arguments.site
        built = self.work / "site.txt"
        if built.exists():
            site = built.read_text()
        env = os.environ | {
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONFAULTHANDLER": "1",
            "TRITON_CACHE_DIR": str(self.work / "triton"),
            "TORCHINDUCTOR_CACHE_DIR": str(self.work / "inductor"),
            "TORCHINDUCTOR_COMPILE_THREADS": "4",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "GPU_RUN_STEP": step.name,
            "GPU_RUN_WORK": str(self.work),
            "GPU_RUN_RESULTS": str(self.out / RESULTS),
            "GPU_RUN_BEGIN": str(self.begin),
            # a step ends by itself before it is stopped
            "GPU_RUN_DEADLINE": str(deadline - 2),
        }
        env.pop("PVT_KERNELS_BACKEND", None)
        if site:
            env["PYTHONPATH"] = os.pathsep.join(filter(None, (site, os.environ.get("PYTHONPATH"))))
        if self.arguments.rehearse:
            env |= {"GPU_RUN_REHEARSE": "1", "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
        return env

    def start(self, step: Step) -> None:
        now = time.time()
        hard_end = self.end + GRACE
        # where the time is short, the later ones come first, but for a little
        own_limit = step.limit * (REHEARSAL if self.arguments.rehearse else 1)
        limit = min(own_limit, max(LEAST, hard_end - now - step.reserve), hard_end - now)
        deadline = now + limit
        texts = (text.format(source=self.arguments.source.resolve()) for text in step.arguments)
        with open(self.work / f"{step.name}.log", "wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", f"steps.{step.module}", *texts],
                cwd=HERE, env=self.environment(step, deadline), stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self.running[step.name] = (step, process, now, deadline)

    def finish(self, name: str) -> bool:
        """Wait for a step until its limit, and keep what it left."""
        _, process, begin, deadline = self.running[name]
        stopped = False
        try:
            process.wait(timeout=max(0.1, deadline - time.time()))
        except subprocess.TimeoutExpired:
            stopped = True
            self.kill(process)
        # what it left behind, such as a worker of a step that crashed
        self.kill(process, wait=False)
        del self.running[name]
        seconds = round(time.time() - begin, 1)
        status = process.returncode
        ending = f"status {status}" if status >= 0 else signal.Signals(-status).name
        self.record("step", name=name, status=status, ending=ending, stopped=stopped,
                    seconds=seconds)  # fmt: skip
        print(f"{name}: {ending}, {'stopped after ' if stopped else ''}{seconds} s", flush=True)
        self.keep_log(name, status)
        return status == 0 and not stopped

    @staticmethod
    def kill(process: subprocess.Popen, wait: bool = True) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL) if wait else (signal.SIGKILL,):
            try:
                os.killpg(process.pid, number)
            except (ProcessLookupError, PermissionError):
                return
            if wait:
                try:
                    process.wait(timeout=3)
                except subprocess.TimeoutExpired:
                    continue

    def keep_log(self, name: str, status: int) -> None:
        try:
            text = (self.work / f"{name}.log").read_bytes().decode(errors="replace")
        except OSError as error:
            text = str(error)
        traces = traces_in(text)
        for trace in traces:
            self.record("trace", name=name, text=trace)
            print(trace, flush=True)
        text = text[-TAIL:]
        with open(self.out / LOG, "a") as file:
            file.write("\n".join([f"\n===== {name}, status {status} =====", *traces, text, ""]))
        if status != 0 and not traces:
            # what the reader of the output needs most
            lines = [line for line in text.splitlines() if not line.startswith("RECORD")]
            print("\n".join(lines[-6:])[-800:], flush=True)

    def run(self, chosen: list[Step]) -> None:
        self.record("run", budget=self.arguments.budget, rehearse=self.arguments.rehearse,
                    steps=[step.name for step in chosen], began=int(self.begin))  # fmt: skip
        if any(step.name == "build" for step in chosen):
            self.start(next(step for step in chosen if step.name == "build"))
        ready = "build" not in self.running
        for step in chosen:
            if step.name == "build":
                continue
            if step.package and not ready:
                ready = True
                if not self.finish("build") and not (self.work / "site.txt").exists():
                    self.record("no package")
            if step.package and self.lacks_package(chosen):
                self.record("not run", name=step.name, reason="the package was not built")
                continue
            if time.time() >= self.end:
                self.record("not run", name=step.name, reason="the budget is used up")
                continue
            self.start(step)
            self.finish(step.name)
        for name in list(self.running):
            self.finish(name)

    def lacks_package(self, chosen: list[Step]) -> bool:
        built = (self.work / "site.txt").exists()
        return any(step.name == "build" for step in chosen) and not built

    def close(self) -> None:
        for _, process, *_ in self.running.values():
            self.kill(process)
        try:
            entries = report.read(self.out / RESULTS)
            table = report.table(entries)
        except Exception as error:
            table = f"no table: {type(error).__name__}: {error}"
        (self.out / TABLE).write_text(table + "\n")
        print(table, flush=True)
        if self.arguments.work is None:
            shutil.rmtree(self.work, ignore_errors=True)


def traces_in(text: str) -> list[str]:
    """What faulthandler printed, also of a step's own processes, which it may survive."""
    lines = text.splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith(TRACES)]
    return ["\n".join(lines[i : i + TRACE_LINES]) for i in starts[:3]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True, help="the repository's root")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--budget", type=float, default=270, help="seconds; no step starts later")
    parser.add_argument("--steps", help="names with commas between; all but those after a minus")
    parser.add_argument("--site", help="a folder with the package built, instead of the step build")
    parser.add_argument("--work", type=Path, help="working folder, which is kept: a later run "
                        "without the step build takes the package from there")  # fmt: skip
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, on tiny sizes")
    arguments = parser.parse_args()
    names = [step.name for step in STEPS]
    asked = arguments.steps.split(",") if arguments.steps else names
    if all(name.startswith("-") for name in asked):
        asked = [name for name in names if f"-{name}" not in asked]
    unknown = [name for name in asked if name not in names]
    if unknown:
        parser.error(f"--steps: given {', '.join(unknown)}, accepted {', '.join(names)}")
    parent = Parent(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        parent.run([step for step in STEPS if step.name in asked])
    finally:
        parent.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
