"""Whole-kernel fuzzing: random PTX kernels through the compiled engine and the reference, compared bit for bit."""
