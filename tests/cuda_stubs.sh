#!/usr/bin/env bash
# Lets the PyTorch for CUDA in FOLDER run on CPUs alone, without gigabytes of CUDA's libraries: for
# each that its libraries ask for and that is missing there goes one in their place, whose functions
# end the process. Where none is missing, as with a PyTorch for CPUs, nothing is done.
#
#     tests/cuda_stubs.sh FOLDER
set -euo pipefail
libraries=$1/torch/lib

functions() {
    nm --dynamic --undefined-only --format=posix "$libraries"/*.so |
        sed --quiet --regexp-extended 's/^((cu|nccl)[A-Za-z0-9_]+).*/\1/p' | sort --unique
}
source=$(functions | sed 's/.*/.globl &\n.type &, @function\n&:/')
for name in $(ldd "$libraries/libtorch_python.so" | awk '/not found/ { print $1 }' | sort --unique); do
    printf '%s\nud2\n' "$source" | cc -shared -nostdlib -x assembler - -o "$libraries/$name" \
        -Wl,-soname,"$name" -Wl,--version-script=<(echo "$name { *; };")
done
