"""What benchmarks/ and the command line share: contenders, inputs, checks, timing, memory."""
