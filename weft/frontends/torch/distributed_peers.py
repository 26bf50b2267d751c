"""The processes of a distributed job: its store in, the ranks whose processes have ended out.

When a process ends, the others only hear that a connection closed. To say whose, every rank leaves its host's name and
its process number in the store when the job begins.
"""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Seconds in which a process whose connections closed should be seen to have ended.
_PATIENCE = 2.0


@dataclass
class Job:
    """rank, size: this process's place. name: the same text in all ranks of a job, unlike that of any other job on
    the machine. processes: (host, process number) by rank."""

    rank: int = 0
    size: int = 1
    name: str = ""
    processes: dict[int, tuple[str, int]] = field(default_factory=dict)


job = Job()


def announce(store: Any, rank: int) -> None:
    """Puts this process into the store. It must come before the ranks connect, so that `join` need not wait."""
    store.set(f"weft/{rank}", json.dumps([socket.gethostname(), os.getpid(), time.time_ns()]))


def join(store: Any, rank: int, size: int) -> None:
    """Reads the processes of all ranks; from now on they are this process's job."""
    found = [json.loads(text) for text in store.multi_get([f"weft/{other}" for other in range(size)])]
    job.rank, job.size = rank, size
    job.name = "-".join(str(part) for part in found[0])
    job.processes = {other: (host, process) for other, (host, process, _) in enumerate(found)}


def _has_ended(host: str, process: int) -> bool:
    """Whether a process of this machine is gone, or waits for its parent to take notice of its end."""
    if host != socket.gethostname():
        return False
    try:
        os.kill(process, 0)
        status = Path(f"/proc/{process}/stat").read_text()
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] in ("Z", "X")


def find_ended(ranks: list[int]) -> list[int]:
    """Those of a job's ranks whose processes have ended. Waits a little for one to be seen."""
    limit = time.monotonic() + _PATIENCE
    while True:
        ended = [rank for rank in ranks if rank in job.processes and _has_ended(*job.processes[rank])]
        if ended or time.monotonic() > limit:
            return ended
        time.sleep(0.02)


def is_lost_connection(error: BaseException) -> bool:
    """Whether an error of gloo's says that another rank does not answer, rather than that an argument is wrong."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        part in text for part in ("third_party/gloo", "connection", "socket closed", "timed out", "timeout")
    )


def explain_failure(what: str, ranks: list[int], error: BaseException) -> str:
    """A message for a collective that failed: who has ended, as far as can be seen from here, or that nobody has.

    what: the collective, for the message. ranks: the global ranks of its group.
    """
    reason = str(error).strip().partition(" This is typically caused")[0]
    mine = f"[rank {job.rank}] {what} failed"
    ended = find_ended([rank for rank in ranks if rank != job.rank])
    if ended:
        names = ", ".join(f"rank {rank} (process {job.processes[rank][1]})" for rank in ended)
        return f"{mine}: {names} ended before it took part. Look for the first error of that process. ({reason})"
    if "timed out" in reason.lower() or "timeout" in reason.lower():
        return (
            f"{mine}: not every rank came within the timeout of the process group. All processes of its ranks that can "
            f"be seen from here are alive; one of them may have taken another way through the program. ({reason})"
        )
    return f"{mine}: a connection to another rank was lost. ({reason})"
