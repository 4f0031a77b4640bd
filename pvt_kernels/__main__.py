"""python -m pvt_kernels"""

import sys

from pvt_kernels.cli import main

# the guard: processes that measure memory import the main module again
if __name__ == "__main__":
    sys.exit(main())
