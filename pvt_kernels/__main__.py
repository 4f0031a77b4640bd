"""python -m pvt_kernels"""

import sys

# the guard: processes that measure memory import the main module again
if __name__ == "__main__":
    from pvt_kernels import startup
    from pvt_kernels.cli import main

    startup.finish()
    sys.exit(main())
