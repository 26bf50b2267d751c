"""Families of instructions that are known and do not run yet: tensor cores, bulk and tensor copies, clusters, textures.
Their use raises UnsupportedError with the text given here."""

from __future__ import annotations

from weft.isa.instruction import declare_missing

declare_missing(
    "tcgen05 is the tensor core of sm_100 and later, which Weft does not run; compile for sm_90a, whose wgmma it runs",
    "tcgen05",
)  # fmt: skip
declare_missing(
    "bulk and tensor copies are not supported yet; copy with loads and stores or with cp.async",
    "cp.async.bulk", "cp.reduce.async.bulk", "st.bulk", "tensormap", "multimem",
)  # fmt: skip
declare_missing(
    "thread-block clusters are not supported yet; launch without a cluster",
    "mapa", "getctarank", "barrier.cluster", "red.async", "st.async", "clusterlaunchcontrol",
)  # fmt: skip
declare_missing(
    "textures and surfaces are not supported; read the array with ordinary loads",
    "tex", "tld4", "suld", "sust", "sured", "txq", "suq", "istypep",
)  # fmt: skip
