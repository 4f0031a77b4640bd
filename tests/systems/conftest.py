import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def _one_thread():
    """Threads that wait for each other slow down small steps, most of all on busy cores."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)
