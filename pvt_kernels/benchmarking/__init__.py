"""What benchmarks/ and the command line share: contenders, inputs, checks, timing, memory."""

import logging
import os
import tempfile
from pathlib import Path


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("No CUDA runtime is found")


# torch.compile imports this module on a CPU too, where nvcc without a GPU is no fault; set here, so
# that it holds in the fork server's processes as well
logging.getLogger("torch.utils.cpp_extension").addFilter(_is_news)

# of what torch.compile made, that for other instructions than these would be taken too: its cache
# knows nothing of a CPU that is held to fewer than it has, and writes beyond the ends of tensors
_held_to = os.environ.get("ATEN_CPU_CAPABILITY")
if _held_to:
    _cache = Path(tempfile.gettempdir()) / f"pvt_kernels-torchinductor-{_held_to}"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(_cache))
