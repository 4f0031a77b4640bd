"""What a run tells, and logs for TensorBoard."""

import time

from rich.console import Console

from pvt_kernels.systems.training.progress import Reporter


def test_a_run_that_goes_on_logs_after_the_older_ones(tmp_path):
    second = int(time.time())
    # of a process with a higher number, begun just now
    (tmp_path / f"events.out.tfevents.{second}.host.999999.0").touch()
    with Reporter(Console(quiet=True), tmp_path, 0, 1):
        pass
    newest = max(path.name for path in tmp_path.iterdir())
    assert int(newest.split(".")[3]) > second
