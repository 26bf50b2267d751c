"""The instruction set. Importing this package fills `weft.isa.instruction.TABLE`."""

from weft.isa import (  # noqa: F401
    approximate,
    atomic,
    barrier,
    carry,
    compare,
    control,
    convert,
    floating,
    integer,
    logic,
    matrix,
    matrix_move,
    matrix_sparse,
    memory,
    move,
    tensor,
    video,
    warp,
    wgmma,
    wmma,
)
