from tests.systems.training.conftest import _one_thread  # noqa: F401
