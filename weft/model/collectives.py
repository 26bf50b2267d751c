"""Collective operations on a chip's links: kind, bytes and ranks in, Estimate out.

Latency plus bytes over bandwidth (alpha-beta), as NCCL's own tuner has it: the better of ring and tree, of the
low-latency and the simple protocol. Within a server the chips speak over NVLink (or the maker's link), else over PCIe;
between servers over the network, each chip with its own adapter.

Bytes are counted as in NCCL's tests: the whole buffer of one rank, which for all_gather is the output and for
reduce_scatter the input. Constants: roofline.toml, [collectives].
"""

from __future__ import annotations

import math
from functools import lru_cache

from weft.chips import Chip
from weft.errors import InvalidValueError
from weft.model.profile import Estimate
from weft.model.rates import constants, link_bandwidth
from weft.model.roofline import idle_power

# Kind -> steps of a ring of n ranks on m servers (all, and those between servers), and the part of the buffer that
# every rank sends, in units of the buffer.
KINDS = ("all_reduce", "all_gather", "reduce_scatter", "broadcast", "reduce", "all_to_all", "gather", "scatter", "p2p",
         "barrier")  # fmt: skip
LINK_NAMES = {"nvlink": "NVLink", "pcie": "PCIe", "network": "network"}
# Power of a chip that sends and receives, over its idle power, as a part of what is left to its limit.
POWER_SHARE = 0.3


def find_kind(name: str) -> str:
    """A collective's kind by the names that NCCL, torch.distributed and its operators use.

    Raises InvalidValueError for an unknown one.
    """
    base = name.rpartition("::")[2].partition(".")[0].strip("_")
    if base in KINDS:
        return base
    for alias, kind in ALIASES.items():
        if base.startswith(alias):
            return kind
    raise InvalidValueError(f"kind of collective: found {name!r}, expected one of {', '.join(KINDS)}")


ALIASES = {
    "allreduce": "all_reduce", "all_reduce": "all_reduce", "allgather": "all_gather", "all_gather": "all_gather",
    "reduce_scatter": "reduce_scatter", "alltoall": "all_to_all", "all_to_all": "all_to_all",
    "broadcast": "broadcast", "gather": "gather", "scatter": "scatter", "reduce": "reduce", "send": "p2p",
    "recv": "p2p", "isend": "p2p", "irecv": "p2p", "batch_p2p": "p2p", "monitored_barrier": "barrier",
    "barrier": "barrier",
}  # fmt: skip


@lru_cache(maxsize=65536)
def estimate_collective(chip: Chip, kind: str, nbytes: int, ranks: int, nodes: int = 1) -> Estimate:
    """Seconds from the moment that all ranks have come. One rank alone has nothing to send.

    Raises InvalidValueError for an unknown kind, or fewer ranks than nodes.
    """
    kind = find_kind(kind)
    if not 1 <= nodes <= ranks:
        raise InvalidValueError(f"collective: found {ranks} ranks on {nodes} nodes, expected at least one rank on each")
    numbers = constants()
    if ranks == 1:
        seconds = numbers["kernel"]["floor"]
        return Estimate(seconds, seconds * idle_power(chip), "launch latency", {"launch latency": seconds})
    inside = "nvlink" if link_bandwidth(chip, "nvlink") else "pcie"
    links = ([inside] if ranks > nodes else []) + (["network"] if nodes > 1 else [])
    rates = {link: link_bandwidth(chip, link) or 0.0 for link in links}
    missing = [LINK_NAMES[link] for link, rate in rates.items() if not rate]
    if missing:
        raise InvalidValueError(f"{chip.name} has no {' and no '.join(missing)} for {ranks} ranks on {nodes} nodes")
    slowest = min(rates, key=lambda link: rates[link])
    best: tuple[float, float, float] | None = None
    for protocol in ("low_latency", "simple"):
        table = numbers["collectives"][protocol]
        options = [(_ring(kind, ranks, nodes, inside, table), table["bandwidth_ring"], _ring_share(kind, ranks))]
        if kind in ("all_reduce", "barrier"):
            options.append((_tree(ranks, nodes, inside, table), table["bandwidth_tree"], 2.0))
        for latency, fraction, share in options:
            moving = share * nbytes / (rates[slowest] * fraction)
            if best is None or latency + moving < best[0]:
                best = (latency + moving, latency, moving)
    assert best is not None
    seconds, latency, moving = best
    limiter = LINK_NAMES[slowest] if moving > latency else "link latency"
    idle = idle_power(chip)
    joules = seconds * (idle + POWER_SHARE * (float(chip.power) - idle))
    return Estimate(seconds, joules, limiter, {LINK_NAMES[slowest]: moving, "link latency": latency})


def _ring_share(kind: str, ranks: int) -> float:
    """Bytes that cross each link, over the bytes of the buffer."""
    if kind == "all_reduce":
        return 2.0 * (ranks - 1) / ranks
    if kind in ("all_gather", "reduce_scatter", "all_to_all", "gather", "scatter"):
        return (ranks - 1) / ranks
    return 0.0 if kind == "barrier" else 1.0


def _ring(kind: str, ranks: int, nodes: int, inside: str, table: dict) -> float:
    """Seconds of latency: hops within the servers and between them."""
    turns = 2 if kind in ("all_reduce", "barrier") else 1
    if kind in ("p2p", "all_to_all", "gather", "scatter"):  # every rank speaks to the others directly
        link = "network" if nodes > 1 else inside
        return table["base"] + table["hop"][link]
    between = nodes - 1 if nodes > 1 else 0
    within = ranks - 1 - between
    return table["base"] + turns * (within * table["hop"][inside] + between * table["hop"]["network"])


def _tree(ranks: int, nodes: int, inside: str, table: dict) -> float:
    """A chain within each server, a binary tree between them, up and down."""
    within = ranks / nodes - 1
    between = math.log2(nodes) if nodes > 1 else 0.0
    return table["base"] + 2 * (within * table["hop"][inside] + between * table["hop"]["network"])
