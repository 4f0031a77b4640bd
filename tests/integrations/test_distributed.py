"""A patched model in processes of its own: pickled into them, and trained data-parallel."""

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import pvt_kernels

from .checks import patched_names, with_lively_weights
from .doubles import Block, OpenMMLabAttention, PvtAttention

PROCESSES = 2


def train_step(rank, folder, model, batches):
    """One process of the group: leaves its gradients in a file."""
    torch.set_num_threads(1)
    assert patched_names(model) == ["0.attn", "1.attn"]
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/group", rank=rank, world_size=PROCESSES
    )
    wrapped = DistributedDataParallel(model)
    wrapped(batches[rank]).pow(2).mean().backward()
    torch.save([p.grad for p in model.parameters()], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_data_parallel_training_in_spawned_processes(tmp_path):
    model = nn.Sequential(Block(PvtAttention()), Block(OpenMMLabAttention()))
    pvt_kernels.patch(with_lively_weights(model))
    batches = torch.randn(PROCESSES, 2, Block.H * Block.W, 32)
    mp.spawn(train_step, (tmp_path, model, batches), nprocs=PROCESSES)
    model(batches.flatten(0, 1)).pow(2).mean().backward()
    expected = [p.grad for p in model.parameters()]
    for rank in range(PROCESSES):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), expected)
