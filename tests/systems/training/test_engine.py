"""Whole runs: killed, interrupted, shared by processes, in other precisions."""

import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pvt_kernels import systems
from pvt_kernels.cli import main
from pvt_kernels.systems.training import checkpoint, engine
from pvt_kernels.systems.training.distributed import Processes
from pvt_kernels.systems.training.engine import LAST, Run, Training
from pvt_kernels.systems.training.system import backbone_of

SYSTEM = systems.load("classification")
# everything that draws random numbers, on images small enough for a step in a blink
SETTINGS = ("epochs=6", "batch_size=8", "micro_batch=4", "image_size=32", "evaluate_every=3",
            "drop_path_rate=0.2", "mixup=0.8", "cutmix=1.0", "repeats=2", "erasing=0.5",
            "auto_augment=rand-m9-mstd0.5-inc1")  # fmt: skip
STEPS = 18


def arguments(data, output, *more, workers=0):
    return [
        "train", "classification", "--data", str(data["image_folder"]), "--output", str(output),
        "--recipe", "shapes", "--log-every", "1", "--save-every", "4", "--workers", str(workers),
        "--device", "cpu", "--set", *SETTINGS, *more,
    ]  # fmt: skip


def logged(folder, name="train/loss"):
    """A scalar by step, as TensorBoard shows it."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}, purge_orphaned_data=True)
    events.Reload()
    return {event.step: event.value for event in events.Scalars(name)}


@pytest.fixture(scope="module")
def uninterrupted(shapes_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    assert main(arguments(shapes_data, folder)) == 0
    assert set(logged(folder)) == set(range(1, STEPS + 1))
    return folder


def started(command, until):
    """A process, in a group of its own, once the run in it has made `until` steps."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    for line in process.stdout:
        if line.startswith(f"step {until}/"):
            return process
    raise AssertionError(f"ended with {process.wait()} before step {until}")


def assert_same_run(folder, uninterrupted):
    assert logged(folder) == logged(uninterrupted)
    ended, other = (checkpoint.load(run / LAST) for run in (folder, uninterrupted))
    assert ended["step"] == other["step"] == STEPS
    for name, value in other["model"].items():
        assert torch.equal(ended["model"][name], value), name


def assert_resumes(data, output, uninterrupted):
    assert main(arguments(data, output, "--resume")) == 0
    assert_same_run(output, uninterrupted)


def test_a_killed_run_resumes_to_the_same_losses_and_weights(shapes_data, tmp_path, uninterrupted):
    with started(["pvt_kernels", *arguments(shapes_data, tmp_path)], until=6) as process:
        process.send_signal(signal.SIGKILL)
    saved = checkpoint.load(tmp_path / LAST)["step"]
    assert saved in (4, 8, 9, 12, 16)  # by --save-every and evaluate_every
    assert_resumes(shapes_data, tmp_path, uninterrupted)


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.nightly)]
)
def test_a_run_whose_whole_group_is_signalled_saves_its_last_step(
    number, shapes_data, tmp_path, uninterrupted
):
    """As terminals do by Ctrl-C, and schedulers before they kill."""
    command = ["pvt_kernels", *arguments(shapes_data, tmp_path, workers=2)]
    with started(command, until=5) as process:
        os.killpg(process.pid, number)
        os.killpg(process.pid, number)  # a launcher and the scheduler above it both send it
        *steps, last = process.stdout
        assert process.wait() == 128 + number
    assert last == f"Interrupted; --resume goes on from {tmp_path}.\n"
    saved = checkpoint.load(tmp_path / LAST)["step"]
    steps = [line for line in steps if line.startswith("step ")]
    assert saved == 5 if not steps else steps[-1].startswith(f"step {saved}/")
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # no worker is left
    assert_resumes(shapes_data, tmp_path, uninterrupted)


@pytest.mark.nightly
def test_two_processes_stop_together_and_one_goes_on(shapes_data, tmp_path, uninterrupted):
    """Under torchrun, which passes signals on to its processes' groups."""
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "pvt_kernels"]
    command = [*torchrun, *arguments(shapes_data, tmp_path, workers=1)]
    with started(command, until=STEPS // 2 + 1) as process:
        process.send_signal(signal.SIGTERM)
        printed = process.stdout.read()
    assert f"Interrupted; --resume goes on from {tmp_path}.\n" in printed
    saved = checkpoint.load(tmp_path / LAST)["step"]
    assert STEPS // 2 < saved < STEPS
    # the mean over two processes is rounded as the sum of two micro-batches is
    assert_resumes(shapes_data, tmp_path, uninterrupted)
    for name in ("eval/top1", "eval/top5"):
        assert logged(tmp_path, name) == logged(uninterrupted, name)


def run_of(data, output, **settings):
    base = dict(setting.split("=") for setting in SETTINGS)
    return Run(
        system=SYSTEM,
        recipe=SYSTEM.recipes[-1],
        settings=base | {name: str(value) for name, value in settings.items()},
        data=data["image_folder"],
        output=output,
    )


OWN = Processes(0, 1, torch.device("cpu"))


class Silent:
    """A console that nothing is read from."""

    is_terminal = False

    def print(self, *_, **__):
        pass


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_trains(precision, shapes_data, tmp_path, monkeypatch):
    run = replace(
        run_of(shapes_data, tmp_path, iterations=2, drop_path_rate=0), precision=precision
    )
    training = Training(run, OWN)
    before = {name: p.clone() for name, p in training.model.named_parameters()}
    monkeypatch.setattr(engine, "evaluate", lambda *_: {})
    monkeypatch.setattr(training, "_reporter", lambda _: Nothing())
    assert training.run(Silent()).signal is None
    scale = checkpoint.load(tmp_path / LAST)["scaler"].get("scale")
    assert (scale is not None) == (precision == "fp16")
    changed = [n for n, p in training.model.named_parameters() if not torch.equal(p, before[n])]
    # a step that overflows is left out, by scaling
    assert changed or (precision == "fp16" and scale < 65536)
    for parameter in training.model.parameters():
        assert parameter.dtype == torch.float32 and parameter.isfinite().all()


class Nothing:
    """No reporter: the run of a process that doesn't print."""

    def __enter__(self):
        return None

    def __exit__(self, *_):
        return None


def test_recomputed_blocks_give_the_same_gradients():
    recipe = replace(SYSTEM.recipes[-1], drop_path_rate=0.3)
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(1)
        model = SYSTEM.build("pvt_v2_b0", ["a", "b"], recipe).train()
        if recompute:
            backbone_of(model).set_grad_checkpointing()
        batch = torch.randn(2, 3, 32, 32), torch.tensor([0, 1])
        sum(SYSTEM.loss(model, batch, recipe).values()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(
    shapes_data, tmp_path, monkeypatch
):
    made = []

    def loss(model, batch, recipe):
        made.append(None)
        losses = SYSTEM.loss(model, batch, recipe)
        return {
            name: value * (float("nan") if len(made) > 4 else 1) for name, value in losses.items()
        }

    run = replace(run_of(shapes_data, tmp_path), system=replace(SYSTEM, loss=loss), save_every=1)
    training = Training(run, OWN)
    monkeypatch.setattr(training, "_reporter", lambda _: Nothing())
    with pytest.raises(FloatingPointError, match=r"not finite in the 1 steps before step 3: .*nan"):
        training.run(Silent())
    saved = checkpoint.load(tmp_path / LAST)
    assert saved["step"] == 2
    assert all(value.isfinite().all() for value in saved["model"].values())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_ends_the_run_by_its_name(workers, shapes_data, tmp_path, capsys):
    root = shutil.copytree(shapes_data["image_folder"], tmp_path / "data")
    for image in root.glob("train/*/*.jpg"):
        image.write_bytes(b"")
    given = arguments({"image_folder": root}, tmp_path / "run", workers=workers)
    assert main(given) == 2
    assert re.fullmatch(r"error: broken image .*/\d+\.jpg: .*\n", capsys.readouterr().err)


def test_what_a_run_refuses_before_any_work(shapes_data, tmp_path, uninterrupted):
    with pytest.raises(ValueError, match=r"output: .* holds a run: resume it, or give another"):
        Training(run_of(shapes_data, uninterrupted), OWN)
    with pytest.raises(ValueError, match=r"last\.pt is of another run: settings"):
        Training(replace(run_of(shapes_data, uninterrupted, epochs=9), resume=True), OWN)
    with pytest.raises(ValueError, match="batch_size: given 25"):
        Training(run_of(shapes_data, tmp_path, batch_size=25), OWN)
    with pytest.raises(ValueError, match="name must be one of pvt_tiny"):
        Training(replace(run_of(shapes_data, tmp_path), backbone="vit"), OWN)
    assert list(tmp_path.iterdir()) == []
