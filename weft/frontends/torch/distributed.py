"""torch.distributed with the backend "nccl": a process group in, a Communicator on gloo out.

Every rank is a process with virtual GPUs of its own. The numbers travel through gloo; what NCCL would take on the
chip's links is the timeline's business (distributed_works.py), the operators are in distributed_collectives.py.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from datetime import timedelta
from typing import Any

import torch

from weft import settings

_C = torch._C
_TIMEOUT = timedelta(minutes=10)  # NCCL's own default
_libraries: list[Any] = []


def nodes_among(ranks: Sequence[int]) -> int:
    """Machines that global ranks are on, from what torchrun tells its processes; one where nobody says."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE") or 0)
    return len({rank // local for rank in ranks}) if local else 1


class Communicator:
    """A process group's backend for CUDA tensors.

    shadow: a process group that does the same on the CPU. name, rank, size: the group's; ranks: its global ranks.
    key: the group's name on the timeline, the same in all its processes and in no other group. stream: where its
    collectives run. is_nccl: not for a program that chose gloo.
    """

    def __init__(self, group: Any, backend: Any):
        import torch.distributed as dist

        from weft.frontends.torch.distributed_peers import job

        inner = getattr(backend, "wrapped_pg", backend)
        self.is_nccl = not isinstance(inner, dist.ProcessGroupGloo) or isinstance(inner, dist.ProcessGroupNCCL)
        self.backend = backend  # so that its id stays its own
        self.name, self.rank, self.size = group.group_name, group.rank(), group.size()
        options = getattr(inner, "options", None)
        self.ranks = list(getattr(options, "global_ranks_in_group", ())) or list(range(self.size))
        self.key: Hashable = (job.name, self.name, tuple(self.ranks))
        described = group.group_desc not in ("", "undefined")
        self.stream = f"nccl {group.group_desc if described else self.name}"
        if any(other.stream == self.stream for other in _communicators.values()):
            self.stream += f" {self.name}"
        self.nodes = nodes_among(self.ranks)
        self.shadow = dist.ProcessGroup(self.rank, self.size)
        self.shadow._register_backend(torch.device("cpu"), dist.ProcessGroup.BackendType.GLOO, backend)
        self._batch: list[Any] | None = None

    def nodes_of(self, pair: tuple[int, int] | None) -> int:
        """Machines that a collective spans, or a message between two ranks of the group."""
        return self.nodes if pair is None else nodes_among([self.ranks[place] for place in pair])

    def note(self, work: Any) -> None:
        """Takes the handle of a collective that was just issued into the open batch, where there is one."""
        if self._batch is not None:
            self._batch.append(work)

    def begin_batch(self) -> None:
        self._batch = []

    def end_batch(self) -> Any:
        """One handle for all collectives since `begin_batch`; None where there were none."""
        from weft.frontends.torch.distributed_works import PlacedWork

        batch, self._batch = self._batch, None
        if not batch:
            return None
        inner = [work for placed in batch for work in placed.inner]
        outputs = [tensor for placed in batch for tensor in placed.outputs]
        placements = [place for placed in batch for place in placed.placements]
        return PlacedWork(inner, placements, outputs, batch[0].what, self.ranks)


_communicators: dict[int, Communicator] = {}


def find_communicator(group: Any) -> Communicator:
    """The Communicator of a process group's CUDA backend. Raises RuntimeError, as PyTorch does, where it has none."""
    backend = group._get_backend(torch.device("cuda"))
    found = _communicators.get(id(backend))
    if found is None or found.backend is not backend:
        found = _communicators[id(backend)] = Communicator(group, backend)
    return found


def forget_communicator(group: Any, deliver: bool) -> None:
    """Lets a process group's connections end with it. deliver: whether messages on their way arrive first."""
    try:
        backend = group._get_backend(torch.device("cuda"))
    except RuntimeError:
        return
    if deliver:
        from weft.frontends.torch.distributed_works import deliver_all

        deliver_all()
    _communicators.pop(id(backend), None)
    _backends.pop(id(getattr(backend, "wrapped_pg", backend)), None)


# ---------------------------------------------------------------- the backend by its name
# Python's half of each backend, which PyTorch itself does not hold.
_backends: dict[int, Any] = {}


class NCCLConfig:
    """ncclConfig_t: what programs set; nothing here depends on it."""


class NCCLOptions:
    """torch.distributed.ProcessGroupNCCL.Options. Only the timeout has an effect."""

    def __init__(self, is_high_priority_stream: bool = False):
        self.is_high_priority_stream = is_high_priority_stream
        self._timeout = _TIMEOUT
        self.config = NCCLConfig()
        self.split_from: Any = None
        self.split_color: Any = None
        self.global_ranks_in_group: list[int] = []
        self.group_name = ""


def make_backend(dist: Any) -> type:
    """The class ProcessGroupNCCL, on the gloo of this build."""
    from weft.frontends.torch.distributed_peers import announce, explain_failure, is_lost_connection, job, join

    gloo: Any = dist.distributed_c10d.ProcessGroupGloo

    class ProcessGroupNCCL(gloo):
        """The process group of the backend "nccl", with gloo underneath."""

        Options = NCCLOptions
        NCCLConfig = NCCLConfig
        NCCL_CTA_POLICY_DEFAULT, NCCL_CTA_POLICY_EFFICIENCY, NCCL_CTA_POLICY_ZERO = 0, 1, 2
        _splits = 0  # groups made of this one

        def __init__(self, store: Any, rank: int, size: int, options: Any = None):
            self._nccl_options = options if options is not None else NCCLOptions()
            ranks = self._nccl_options.global_ranks_in_group
            if not ranks:
                announce(store, rank)
            try:
                super().__init__(store, rank, size, timeout=self._nccl_options._timeout)
            except RuntimeError as error:
                if not is_lost_connection(error) or not job.processes:
                    raise
                raise dist.DistBackendError(explain_failure("a new process group", ranks, error)) from error
            if not ranks:
                join(store, rank, size)
                name_process(rank)
            _backends[id(self)] = self

        @property
        def options(self) -> Any:
            return self._nccl_options

        @property
        def uid(self) -> int:
            return id(self)

        @property
        def supports_splitting(self) -> bool:
            return True

        @property
        def supports_coalescing(self) -> bool:
            return True

        def name(self) -> str:
            return "nccl"

        def _get_backend_name(self) -> str:
            return "nccl"

        def comm_split_count(self) -> int:
            return self._splits

        def perform_nocolor_split(self, device: Any) -> None:
            """What a rank does that is not in a group made of this one: nothing, since connections are not shared."""

        def eager_connect_single_device(self, device: Any) -> None:
            """Gloo has connected already."""

        def _set_default_timeout(self, timeout: Any) -> None:
            super()._set_default_timeout(timeout)
            self._nccl_options._timeout = timeout

        def _add_ephemeral_timeout(self, timeout: Any) -> None:
            """Lengthens the timeout of the collectives that follow, NCCL's of the next one only."""
            self._set_default_timeout(self._nccl_options._timeout + timeout)

        def _group_start(self) -> None:
            """Groups of aborts need no order here."""

        def _group_end(self) -> None:
            """Groups of aborts need no order here."""

        def abort(self) -> None:
            """Gloo's connections end with the object."""

        def shutdown(self) -> None:
            """Gloo's connections end with the object."""

    ProcessGroupNCCL.__module__ = "torch.distributed.distributed_c10d"
    ProcessGroupNCCL.__qualname__ = "ProcessGroupNCCL"
    return ProcessGroupNCCL


def name_process(rank: int) -> None:
    """Tells the timeline which rank this process is."""
    from weft.frontends.torch.recording import current_timeline

    timeline = current_timeline()
    if timeline is not None:
        timeline.rank = rank


def patch_groups(dist: Any) -> None:
    """Methods of torch.distributed.ProcessGroup that go to a backend written in C++."""
    group_class = dist.ProcessGroup
    start, end, split = group_class._start_coalescing, group_class._end_coalescing, group_class.split_group
    shutdown, abort = group_class.shutdown, group_class.abort

    def is_nccl(group: Any, device: Any) -> bool:
        return torch.device(device).type == "cuda" and find_communicator(group).is_nccl

    def _start_coalescing(self: Any, device_type: Any) -> None:
        if is_nccl(self, device_type):
            find_communicator(self).begin_batch()
        else:
            start(self, device_type)

    def _end_coalescing(self: Any, device_type: Any) -> Any:
        if is_nccl(self, device_type):
            return find_communicator(self).end_batch()
        return end(self, device_type)

    def split_group(
        self: Any,
        ranks: Sequence[int],
        timeout: Any = None,
        opts: Any = None,
        group_name: str | None = None,
        group_desc: str | None = None,
        device_types: Any = None,
    ) -> Any:
        if not isinstance(opts, NCCLOptions):
            return split(self, ranks, timeout, opts, group_name, group_desc, device_types)
        return _split_group(dist, self, list(ranks), timeout, opts, group_name, group_desc, device_types)

    def shut_down(self: Any) -> None:
        forget_communicator(self, deliver=True)
        shutdown(self)

    def abort_group(self: Any) -> None:
        forget_communicator(self, deliver=False)
        abort(self)

    group_class._start_coalescing, group_class._end_coalescing = _start_coalescing, _end_coalescing
    group_class.split_group, group_class.shutdown, group_class.abort = split_group, shut_down, abort_group


def _split_group(dist: Any, parent: Any, ranks: list[int], timeout: Any, options: Any, name: str | None,
                 description: str | None, device_types: Any) -> Any:  # fmt: skip
    """ProcessGroup.split_group: a group of some of the parent's ranks, None in a process that is not among them."""
    inner = parent._get_backend(torch.device("cuda"))
    inner = getattr(inner, "wrapped_pg", inner)
    inner._splits += 1
    place = parent.rank()
    ranks = sorted(ranks)
    if place not in ranks:
        return None
    name = name or f"{parent.group_name}:split:{inner._splits}"
    store = dist.PrefixStore(f"{name}/", parent.get_group_store().clone())
    rank, size = ranks.index(place), len(ranks)
    group = dist.ProcessGroup(store, rank, size)
    group._set_default_backend(dist.ProcessGroup.BackendType.NCCL)
    for device in device_types or parent._device_types:
        prefix = dist.PrefixStore(f"{device.type}/", store)
        if device.type == "cuda":
            options._timeout = timeout or options._timeout
            parents = inner.options.global_ranks_in_group or list(range(parent.size()))
            options.global_ranks_in_group, options.group_name = [parents[one] for one in ranks], name
            backend = dist.ProcessGroupNCCL(prefix, rank, size, options)
            group._register_backend(device, dist.ProcessGroup.BackendType.NCCL, backend)
        else:
            backend = dist.distributed_c10d.ProcessGroupGloo(prefix, rank, size, timeout=timeout or _TIMEOUT)
            group._register_backend(device, dist.ProcessGroup.BackendType.GLOO, backend)
    group._set_group_name(name)
    group._set_group_desc(description or "undefined")
    return group


def patch_distributed(c10d: Any) -> None:
    """Makes the backend "nccl" available. c10d: torch.distributed.distributed_c10d."""
    import torch.distributed as dist

    if not getattr(c10d, "_GLOO_AVAILABLE", False):
        return
    from weft.frontends.torch.distributed_collectives import (
        KINDS,
        follow_factors,
        make_collective,
        refuse_any_source,
    )

    backend = make_backend(dist)
    c10d._NCCL_AVAILABLE = True
    c10d.default_pg_nccl_timeout = _TIMEOUT
    c10d.ProcessGroupNCCL = dist.ProcessGroupNCCL = _C._distributed_c10d.ProcessGroupNCCL = backend
    library = _C._dispatch_library("IMPL", "c10d", "CUDA", "", 0)
    _libraries.append(library)
    for name in KINDS:
        library.impl(name, "CUDA", make_collective(name, find_communicator), False)
    library.impl("recv_any_source_", "CUDA", refuse_any_source, False)
    follow_factors()
    patch_groups(dist)
    # The reducer's timers are CUDA's own; without them it must not be asked for statistics.
    _C._distributed_c10d.Logger.set_runtime_stats_and_log = _log_nothing
    if settings.current().dry:
        from weft.frontends.torch.dry_distributed import play_alone

        play_alone(c10d)


def _log_nothing(self: Any) -> None:
    """DDP's statistics need CUDA events of a CUDA build."""
