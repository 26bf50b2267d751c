"""Operators that a generic kernel cannot do: one file per family, each with a table `KERNELS` of name -> function."""
