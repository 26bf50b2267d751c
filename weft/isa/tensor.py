"""Families of instructions that are known and do not run yet: tensor cores, bulk and tensor copies, clusters, textures.
Their use raises UnsupportedError with the text given here."""

from __future__ import annotations

from weft.isa.instruction import declare_missing

declare_missing(
    "tcgen05 is the tensor core of sm_100 and later, which Weft does not run; compile for sm_90a, whose wgmma it runs",
    "tcgen05",
)  # fmt: skip
declare_missing("multicast memory between devices is not supported", "multimem")
declare_missing(
    "clusterlaunchcontrol came with sm_100, which Weft does not run; compile for sm_90a, where programs divide their "
    "work with a counter in global memory instead",
    "clusterlaunchcontrol",
)  # fmt: skip
declare_missing(
    "textures and surfaces are not supported; read the array with ordinary loads",
    "tex", "tld4", "suld", "sust", "sured", "txq", "suq", "istypep",
)  # fmt: skip
