"""Launches kernels that were compiled elsewhere, through the CUDA driver; csrc/cuda/driver.h.

The driver is found at the first call. RuntimeError where there is none, or where it refuses a call,
names the kernel, the call and CUDA's error.
"""

from collections.abc import Sequence

# ("slot", index, bytes from its address on), or "int32", "int64" or "float32" and a number
Argument = tuple[str, int, int] | tuple[str, int | float]

class Kernel:
    """A kernel of a cubin in the primary context of a device, until the process ends."""

    def __init__(
        self, device: int, image: bytes, name: str, threads: int, shared_bytes: int
    ) -> None: ...

class Plan:
    """Launches in their order: kernel, blocks, arguments. Threads may launch it side by side."""

    def __init__(
        self, launches: Sequence[tuple[Kernel, int, Sequence[Argument]]], slots: int
    ) -> None: ...
    def __len__(self) -> int: ...
    def launch(self, stream: int, addresses: Sequence[int]) -> None:
        """Enqueues all on a stream, the address of a cudaStream_t, and releases the GIL.

        `addresses` are those of the slots.
        """
