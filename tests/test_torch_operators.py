"""PyTorch's operators on a virtual GPU, held against the CPU's results: its own database, and what only CUDA has."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
import torch_opinfo as opinfo  # noqa: E402

import weft  # noqa: E402
from weft.frontends.torch.recording import recorder  # noqa: E402
from weft.model.operators import covered  # noqa: E402

PARTS = 16
# What .item() asks for: the timeline takes it for the copy to the host that it is.
PRICED_ELSEWHERE = {"_local_scalar_dense"}


@pytest.fixture(scope="module", autouse=True)
def gpu() -> Iterator[weft.Device]:
    device = weft.install("h100", children=False)
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False  # results are held against the CPU's, which has no TF32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield device
    torch.backends.cudnn.allow_tf32 = before


# ---------------------------------------------------------------- the database
@pytest.mark.parametrize("part", range(PARTS))
def test_database(part: int) -> None:
    """float32 in every aspect, and one more type in turn; tools/torch_sweep.py runs all types and samples."""
    exceptions = opinfo.read_exceptions()
    ran: set[str] = set()
    wrong, passed = {}, 0

    def listen(name: str, *rest: object) -> None:
        ran.add(name)

    recorder.add(listen)
    try:
        for place, op in enumerate(opinfo.operators()):
            if place % PARTS != part:
                continue
            names = opinfo.dtypes_of(op)
            other = opinfo.DTYPES[1 + place // PARTS % 5]
            for dtype in dict.fromkeys((*names[:1], other)):
                if dtype in names:
                    found = opinfo.check_operator(op, dtype, samples=2 if dtype == "float32" else 1)
                    passed += not found.failures
                    if found.failures and not found.is_excused(exceptions):
                        wrong[found.key] = found.failures
    finally:
        recorder.remove(listen)
    assert not wrong
    assert passed > 50
    assert {name for name in ran if not covered(name)} <= PRICED_ELSEWHERE


@pytest.mark.parametrize("entry", opinfo.read_exceptions())
def test_exceptions_are_exceptions(entry: str) -> None:
    """What is listed still fails; once it passes it must leave the list."""
    name, *rest = entry.split(":")
    (op,) = (op for op in opinfo.operators() if opinfo.name_of(op) == name)
    dtypes = rest[:1] or opinfo.dtypes_of(op)
    failures = [aspect for dtype in dtypes for aspect in opinfo.check_operator(op, dtype, samples=4).failures]
    assert failures and (len(rest) < 2 or rest[1] in failures)
