"""What benchmarks/ and the command line share: contenders, inputs, checks, timing, memory."""

import logging


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("No CUDA runtime is found")


# torch.compile imports this module on a CPU too, where nvcc without a GPU is no fault; set here, so
# that it holds in the fork server's processes as well
logging.getLogger("torch.utils.cpp_extension").addFilter(_is_news)
