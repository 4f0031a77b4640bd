"""Launch plans: what a list of launches comes to for given sizes, packed once for the driver.

The functions that make launches run on tensors of device meta, which stand for the slots of a
plan: tensors whose addresses are known at a call alone. Afterwards a call is one call of `_C`,
with the slots' addresses.
"""

from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Protocol

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from pvt_kernels._C import driver
from pvt_kernels.backends.triton.launch import Gpu, Launch, is_interpreted, run

# where a tensor in the workspace begins: at a multiple of a line of the caches, and of 16 bytes
ALIGNMENT = 256
_POINTERS = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}
_NUMBERS = {"i32": "int32", "i64": "int64", "fp32": "float32"}
_BYTES = {"i32": 4, "i64": 8, "fp32": 4}


class Plan(Protocol):
    """Launches on a stream at the addresses of their slots."""

    def launch(self, stream: int, addresses: Sequence[int]) -> None: ...


@dataclass(frozen=True)
class Place:
    """Where a tensor begins: so many bytes into a slot."""

    slot: int
    offset: int


def placeholder(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A contiguous tensor that has no memory."""
    return torch.empty(shape, dtype=dtype, device="meta")


def plan(
    device: int, gpu: Gpu, launches: Sequence[Launch], slots: Sequence[Tensor]
) -> tuple[Plan, int]:
    """The launches as one plan, and the bytes of workspace that it needs.

    Args:
        device: index of the GPU.
        gpu: what it is.
        launches: on tensors of device meta.
        slots: the tensors whose addresses a call has, in their order. Every other tensor of the
            launches is in the workspace, whose address comes last.

    Raises:
        RuntimeError: if a kernel can't be compiled or launched so; the message names it.
    """
    places, workspace = _places(launches, slots)
    launches = [launch for launch in launches if launch.blocks > 0]
    if is_interpreted():
        return _Interpreted(launches, places), workspace
    packed = []
    for launch in launches:
        kernel, types = _kernel(device, gpu.arch, *_variant(launch))
        values = _values(launch)
        arguments = [
            _argument(name, type_, values, places) for name, type_ in types if type_ != "constexpr"
        ]
        # what Triton adds: pointers to scratch memory, of which these kernels need none
        packed.append((kernel.driver, launch.blocks, arguments + [("int64", 0)] * kernel.scratch))
    return driver.Plan(packed, len(slots) + 1), workspace


def _places(launches: Sequence[Launch], slots: Sequence[Tensor]) -> tuple[dict[int, Place], int]:
    """By its storage, where every tensor of the launches is, and the bytes of the workspace."""
    places = {_storage(tensor): Place(slot, 0) for slot, tensor in enumerate(slots)}
    workspace = 0
    for launch in launches:
        for tensor in launch.outputs.values():
            if _storage(tensor) not in places:
                places[_storage(tensor)] = Place(len(slots), workspace)
                bytes_ = tensor.untyped_storage().nbytes()
                workspace += math.ceil(bytes_ / ALIGNMENT) * ALIGNMENT
        for name, tensor in launch.inputs.items():
            if _storage(tensor) not in places:
                kernel = launch.kernel.__name__
                raise RuntimeError(f"{kernel}: {name} is no slot, and no launch before wrote it")
    return places, workspace


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _place(tensor: Tensor, places: dict[int, Place]) -> Place:
    place = places[_storage(tensor)]
    return replace(place, offset=place.offset + tensor.storage_offset() * tensor.element_size())


def _values(launch: Launch) -> dict[str, Tensor | int | float]:
    return launch.inputs | launch.outputs | launch.numbers


def _argument(
    name: str, type_: str, values: dict[str, Tensor | int | float], places: dict[int, Place]
) -> tuple:
    value = values[name]
    if isinstance(value, Tensor):
        place = _place(value, places)
        return "slot", place.slot, place.offset
    return _NUMBERS[type_], value


def _variant(launch: Launch) -> tuple:
    """What a kernel is compiled for, but for the GPU: sizes and strides are no part of it."""
    values = _values(launch)
    types = []
    for parameter in launch.kernel.params:
        name = parameter.name
        if parameter.is_constexpr:
            types.append((name, "constexpr", False))
        elif isinstance(value := values[name], Tensor):
            aligned = value.storage_offset() * value.element_size() % 16 == 0
            types.append((name, _POINTERS[value.dtype], aligned))
        else:
            types.append((name, parameter.annotation_type or "fp32", False))
    options = {
        "num_warps": launch.warps,
        "num_stages": launch.stages,
        "maxnreg": launch.maxnreg,
    }
    return launch.kernel, tuple(types), tuple(launch.constants.items()), tuple(options.items())


@dataclass(frozen=True)
class _Kernel:
    driver: driver.Kernel
    # how many pointers to scratch memory follow its arguments
    scratch: int


@cache
def _kernel(
    device: int,
    arch: int,
    kernel: triton.JITFunction,
    types: tuple[tuple[str, str, bool], ...],
    constants: tuple[tuple[str, int | str], ...],
    options: tuple[tuple[str, int | None], ...],
) -> tuple[_Kernel, tuple[tuple[str, str], ...]]:
    """A kernel on a device, compiled and loaded once, and its parameters' names and types."""
    signature = {name: type_ for name, type_, _ in types}
    attributes = {
        (i,): [["tt.divisibility", 16]] for i, (_, _, aligned) in enumerate(types) if aligned
    }
    source = ASTSource(kernel, signature, dict(constants), attributes)
    compiled = triton.compile(source, GPUTarget("cuda", arch, 32), dict(options))
    arguments = [type_ for type_ in signature.values() if type_ != "constexpr"]
    scratch = _scratch(compiled, arguments)
    loaded = driver.Kernel(
        device,
        compiled.asm["cubin"],
        compiled.metadata.name,
        threads=compiled.metadata.num_warps * 32,
        shared_bytes=compiled.metadata.shared,
    )
    return _Kernel(loaded, scratch), tuple(signature.items())


def _scratch(compiled: CompiledKernel, arguments: Sequence[str]) -> int:
    """How many pointers to scratch memory a kernel takes after its arguments.

    Triton 3.3 and 3.4 add one, later ones two; the PTX says. Other ways of launching, which these
    kernels don't ask for, would need more than a plan has.
    """
    metadata, name = compiled.metadata, compiled.metadata.name
    entry = re.search(rf"\.entry {name}\((.*?)\)", compiled.asm["ptx"], re.DOTALL)
    sizes = [int(bits) // 8 for bits in re.findall(r"\.param \.[a-z](\d+)", entry[1])]
    expected = [_BYTES.get(type_, 8) for type_ in arguments]
    scratch = len(sizes) - len(expected)
    if sizes != expected + [8] * scratch or scratch not in (0, 1, 2):
        raise RuntimeError(
            f"{name}: Triton {triton.__version__} made a kernel with parameters of {sizes} bytes "
            f"where {expected} and up to two pointers were expected"
        )
    for fact, wanted in (
        ("global_scratch_size", 0),
        ("profile_scratch_size", 0),
        ("num_ctas", 1),
        ("launch_cooperative_grid", False),
        ("launch_pdl", False),
    ):
        given = getattr(metadata, fact, wanted)
        if given != wanted:
            raise RuntimeError(f"{name}: a plan launches kernels of {fact} {wanted}, got {given}")
    return scratch


class _Interpreted:
    """The plan in Triton's interpreter, on tensors at the addresses."""

    def __init__(self, launches: Sequence[Launch], places: dict[int, Place]) -> None:
        self._launches, self._places = launches, places

    def launch(self, stream: int, addresses: Sequence[int]) -> None:
        def real(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            found = {}
            for name, tensor in tensors.items():
                place = _place(tensor, self._places) if tensor.numel() > 0 else None
                address = 0 if place is None else addresses[place.slot] + place.offset
                found[name] = _tensor_at(address, tensor)
            return found

        for launch in self._launches:
            run(replace(launch, inputs=real(launch.inputs), outputs=real(launch.outputs)))


def _tensor_at(address: int, like: Tensor) -> Tensor:
    if like.numel() == 0:
        return torch.empty(like.shape, dtype=like.dtype)
    extent = 1 + sum((n - 1) * s for n, s in zip(like.shape, like.stride(), strict=True))
    memory = (ctypes.c_char * (extent * like.element_size())).from_address(address)
    return torch.frombuffer(memory, dtype=like.dtype).as_strided(like.shape, like.stride())
