from typing import TypedDict

class BuildInfo(TypedDict):
    version: str
    interface: str
    compiler: str
    build_type: str
    cuda: str | None
    cuda_archs: list[str]
    cuda_missing: str | None
    cuda_treat_as_arch: int | None

class CudaDevice(TypedDict):
    name: str
    compute_capability: tuple[int, int]
    multiprocessors: int
    shared_memory_per_block: int
    code: str | None
    code_missing: str | None

def build_info() -> BuildInfo: ...
def cpu_features() -> dict[str, bool]: ...
def cuda_devices() -> list[CudaDevice]: ...
def cuda_device(index: int) -> CudaDevice: ...
def splits_of(
    wave: int,
    blocks: int,
    steps: int,
    multiply_adds: float,
    numbers: float,
    operations_a_byte: float,
) -> int: ...
