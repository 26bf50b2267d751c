"""Atomic operations: on tiles with masks, on single words, locks, tickets and messages between programs."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def update_kernel(x, index, out, old, n, NAME: tl.constexpr, BLOCK: tl.constexpr):
    """out[index] = out[index] op x, many to one place; `old` gets what was there before."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    value = tl.load(x + at, mask=inside)
    place = out + tl.load(index + at, mask=inside, other=0)
    if NAME == "add":
        before = tl.atomic_add(place, value, mask=inside)
    elif NAME == "max":
        before = tl.atomic_max(place, value, mask=inside)
    elif NAME == "min":
        before = tl.atomic_min(place, value, mask=inside)
    elif NAME == "and":
        before = tl.atomic_and(place, value, mask=inside)
    elif NAME == "or":
        before = tl.atomic_or(place, value, mask=inside)
    elif NAME == "xor":
        before = tl.atomic_xor(place, value, mask=inside)
    else:
        before = tl.atomic_xchg(place, value, mask=inside)
    tl.store(old + at, before, mask=inside)


def update(x, index, out, name, block=128, **options):
    old = torch.empty_like(x)
    update_kernel[(triton.cdiv(x.numel(), block),)](x, index, out, old, x.numel(), NAME=name, BLOCK=block, **options)
    return old


@triton.jit
def lock_kernel(lock, count, log, ROUNDS: tl.constexpr):
    """A spin lock around a counter that is read and written without atomics."""
    for _ in range(ROUNDS):
        while tl.atomic_cas(lock, 0, 1, sem="acquire") != 0:
            pass
        now = tl.load(count, volatile=True)
        tl.store(log + now, tl.program_id(0))
        tl.store(count, now + 1)
        tl.debug_barrier()
        tl.atomic_xchg(lock, 0, sem="release")


def lock(programs, rounds):
    """(final count, which program was there at each count)."""
    lock_, count = torch.zeros(1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    log = torch.full((programs * rounds,), -1, dtype=torch.int32)
    lock_kernel[(programs,)](lock_, count, log, ROUNDS=rounds)
    return count.item(), log


@triton.jit
def last_kernel(x, shares, out, ticket, n, BLOCK: tl.constexpr, PROGRAMS: tl.constexpr):
    """Each program adds up a share; whoever comes last adds up the shares."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(shares + tl.program_id(0), tl.sum(tl.load(x + at, mask=at < n, other=0), axis=0))
    tl.debug_barrier()
    if tl.atomic_add(ticket, 1, sem="acq_rel") == tl.num_programs(0) - 1:
        i = tl.arange(0, PROGRAMS)
        tl.store(out, tl.sum(tl.load(shares + i, mask=i < tl.num_programs(0), other=0), axis=0))


def last(x, block=64):
    programs = triton.cdiv(x.numel(), block)
    shares, out = torch.zeros(programs, dtype=x.dtype), torch.zeros(1, dtype=x.dtype)
    ticket = torch.zeros(1, dtype=torch.int32)
    last_kernel[(programs,)](x, shares, out, ticket, x.numel(), BLOCK=block, PROGRAMS=triton.next_power_of_2(programs))
    return out.item()


@triton.jit
def swap_kernel(x, expected, wanted, old, n, BLOCK: tl.constexpr):
    """Compare and swap on a whole tile."""
    at = tl.arange(0, BLOCK)
    before = tl.atomic_cas(x + at, tl.load(expected + at), tl.load(wanted + at))
    tl.store(old + at, before)


def swap(x, expected, wanted):
    old = torch.empty_like(x)
    swap_kernel[(1,)](x, expected, wanted, old, x.numel(), BLOCK=x.numel())
    return old
