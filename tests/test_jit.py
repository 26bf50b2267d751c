"""Compiling, linking and caching: several objects, several threads, damaged cache entries."""

import ctypes
import gc
import os
import subprocess
import sys
import threading

import pytest

from weft.codegen.irtext import IRFunction
from weft.codegen.jit import ObjectCache, Target, function_attributes, link_object, optimise_and_emit
from weft.errors import CacheError

TARGETS = [Target.host(), Target.host("avx2")]


def sum_ir(target: Target, extra: int) -> str:
    """i64 weft_run(i64 n): the sum of i * i + extra for i below n, as 32 lanes."""
    f = IRFunction("weft_run", "i64", [("i64", "n")], linkage="", attributes=function_attributes(target))
    (n,) = f.parameters
    total = f.variable(f.splat(f.const("i64", 0)))
    with f.for_range(f.const("i64", 0), n) as i:
        f.set(total, f.add(f.get(total), f.splat(f.add(f.mul(i, i), extra))))
    lanes = f.intrinsic("i64", "llvm.vector.reduce.add.v32i64", f.get(total))
    f.ret(f.udiv(lanes, 32))
    return f.text()


def call(address: int, n: int) -> int:
    return ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(address)(n)


@pytest.mark.parametrize("target", TARGETS, ids=["host", "avx2"])
@pytest.mark.parametrize("size_hint", [None, 10**7])
def test_compile_and_run(target, size_hint):
    code, timings = optimise_and_emit(sum_ir(target, 3), target, size_hint, verify=True)
    assert set(timings) == {"parse", "optimise", "codegen"} and all(t >= 0 for t in timings.values())
    address, handle = link_object(code)
    assert handle.entry == address and call(address, 10) == sum(i * i + 3 for i in range(10))


def test_mask_removes_wide_vectors():
    target = Target.host("avx2")
    assert target.vector_bits <= 256 and "avx512" not in target.features.replace("-avx512", "")
    with pytest.raises(ValueError, match="mask"):
        Target.host("sse9")
    assert Target.host() is Target.host()


@pytest.mark.skipif(not Target.host().is_x86, reason="register names of x86")
def test_masked_code_has_no_zmm(tmp_path):
    for name, target in (("host", TARGETS[0]), ("avx2", TARGETS[1])):
        optimise_and_emit(sum_ir(target, 1), target, dump=tmp_path, name=name)
        assert "define" in (tmp_path / f"{name}.ll").read_text()
        assert "define" in (tmp_path / f"{name}.opt.ll").read_text()
        assert ("zmm" in (tmp_path / f"{name}.s").read_text()) == (target.vector_bits == 512)


def test_calls_into_the_process():
    body = "%y = call double @cos(double %x)\n ret double %y"
    ir = f"declare double @cos(double)\ndefine double @weft_run(double %x) {{\n {body}\n}}"
    code, _ = optimise_and_emit(ir, TARGETS[0])
    address, _handle = link_object(code)
    assert ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_double)(address)(0.0) == 1.0


def test_missing_symbols_and_bad_objects_raise():
    body = "call void @no_such_thing()\n ret void"
    code, _ = optimise_and_emit(f"declare void @no_such_thing()\ndefine void @weft_run() {{\n {body}\n}}", TARGETS[0])
    with pytest.raises(CacheError):
        link_object(code)
    with pytest.raises(CacheError):
        link_object(b"not an object")


def test_invalid_ir_is_our_own_mistake():
    with pytest.raises(AssertionError, match="boom"):
        optimise_and_emit("define void @weft_run() { boom }", TARGETS[0])


def test_many_threads_and_unloading():
    results = {}

    def work(number: int) -> None:
        code, _ = optimise_and_emit(sum_ir(TARGETS[0], number), TARGETS[0])
        for _ in range(3):
            address, handle = link_object(code)
            results[number] = call(address, 4)
            del handle

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    assert results == {number: 14 + 4 * number for number in range(8)}


def test_exit_with_code_loaded():
    """Leaving the interpreter with linked code alive must not crash."""
    program = (
        "from weft.codegen.jit import *\n"
        "keep = [link_object(optimise_and_emit('define void @weft_run() { ret void }', Target.host())[0])]\n"
        "print('ok')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ)
    assert (done.returncode, done.stdout.strip()) == (0, "ok"), done.stderr


# ---- the cache


def test_cache_keeps_and_replaces(tmp_path):
    cache = ObjectCache(tmp_path / "deep" / "cache")
    assert cache.get("k") is None and cache.size() == 0
    cache.put("k", b"meta", b"object")
    cache.put("other", b"", b"")
    assert cache.get("k") == (b"meta", b"object") and cache.get("other") == (b"", b"")
    cache.put("k", b"m2", b"o2")
    assert ObjectCache(cache.directory).get("k") == (b"m2", b"o2")
    assert len(cache.entries()) == 2 and cache.size() == sum(p.stat().st_size for p in cache.entries())
    cache.clear()
    assert cache.entries() == [] and cache.get("k") is None


@pytest.mark.parametrize("damage", ["short", "empty", "flip", "flip_meta", "long", "other_key"])
def test_damaged_entry_is_removed(tmp_path, damage):
    cache = ObjectCache(tmp_path)
    cache.put("k", b"meta" * 10, b"object" * 100)
    (path,) = cache.entries()
    data = bytearray(path.read_bytes())
    if damage == "short":
        data = data[:-1]
    elif damage == "empty":
        data = bytearray()
    elif damage == "flip":
        data[-7] ^= 1
    elif damage == "flip_meta":
        data[60] ^= 1
    elif damage == "long":
        data += b"x"
    path.write_bytes(data)
    key = "k"
    if damage == "other_key":  # a file under a name that is not its key's
        key = "j"
        path.rename(cache._path("j"))
    assert cache.get(key) is None and cache.entries() == []


def test_cache_with_many_writers(tmp_path):
    def work(number: int) -> None:
        cache = ObjectCache(tmp_path)
        for round_ in range(30):
            cache.put("shared", b"m", bytes([number]) * 5000)
            found = cache.get("shared")
            assert found is not None and len(set(found[1])) == 1 and len(found[1]) == 5000
            cache.put(f"{number}-{round_}", b"", b"x")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ObjectCache(tmp_path).entries()) == 6 * 30 + 1
    assert not list(tmp_path.glob(".new-*"))


def test_unusable_directory_raises(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError):
        ObjectCache(tmp_path / "file" / "cache")
