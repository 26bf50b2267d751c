"""Tensor copies against NumPy: every dimension, type, swizzle, out-of-bounds fill, interleave, stride, gather, im2col
and reduction; what they refuse; and compiled code against the reference interpreter."""

from __future__ import annotations

import functools
import itertools
import struct

import numpy as np
import pytest
from async_oracle import SENTINEL, SHARED_BYTES, TABLES, box_of, im2col_of, load_kernel, store_kernel, swizzle

import weft
from weft.errors import IllegalAddressError, IllegalInstructionError, InvalidValueError, UnsupportedError
from weft.isa import tensormap as tm
from weft.ptx.parser import parse_module
from weft.reference import ReferenceMemory, run_kernel
from weft.runtime.tensormap import encode_im2col, encode_tiled

RNG = np.random.default_rng(7)
FILL = np.full(SHARED_BYTES, SENTINEL, np.uint8)
DTYPES = ("uint8", "int8", "uint16", "uint32", "int32", "uint64", "int64", "float16", "float32", "float64")
SWIZZLES = tuple(TABLES)


@pytest.fixture(scope="module")
def gpu():
    return weft.Device("b200", threads=1)


@functools.cache
def program(text: str, gpu):
    return gpu.load(text, "async.ptx")


def numbers(shape, dtype) -> np.ndarray:
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return RNG.standard_normal(shape).astype(kind)
    info = np.iinfo(kind)
    return RNG.integers(info.min, info.max, shape, kind, endpoint=True)


def run(gpu, text: str, tensor_map, before: np.ndarray, coordinates, offsets=(), place: int = 0, bytes_: int = 0):
    """Runs a copy; gives shared memory afterwards."""
    after = gpu.zeros(SHARED_BYTES, np.uint8)
    values = [*coordinates, *(0,) * (5 - len(coordinates)), *offsets, *(0,) * (3 - len(offsets))]
    program(text, gpu)["k"][1, 32](tensor_map, gpu.array(before), after, *values, place, bytes_)
    return after.numpy()


def check_load(gpu, text, tensor_map, expected: np.ndarray, coordinates, name: str = "none", offsets=(), place=0):
    data = expected.tobytes()
    found = run(gpu, text, tensor_map, FILL, coordinates, offsets, place, len(data))
    wanted = FILL.copy()
    kept = swizzle(data, name, place)
    wanted[place : place + len(kept)] = np.frombuffer(kept, np.uint8)
    np.testing.assert_array_equal(found, wanted)


# ---------------------------------------------------------------- loads
SHAPES = {1: (77,), 2: (37, 80), 3: (5, 9, 48), 4: (3, 4, 7, 32), 5: (2, 3, 4, 5, 16)}
BOXES = {1: (48,), 2: (11, 32), 3: (2, 5, 16), 4: (2, 3, 4, 16), 5: (2, 2, 3, 2, 16)}


def padded(shape, dtype) -> np.ndarray:
    """An array whose rows are multiples of 16 bytes, as strides must be."""
    size = np.dtype(dtype).itemsize
    row = -(-shape[-1] * size // 16) * 16 // size
    return numbers((*shape[:-1], row), dtype)[..., : shape[-1]]


def device_view(gpu, array: np.ndarray):
    """The array on the device with the same strides."""
    base = array.base if array.base is not None else array
    whole = gpu.array(base)
    return whole, whole[..., : array.shape[-1]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dimensions", range(1, 6))
def test_load(gpu, dimensions, dtype):
    array = padded(SHAPES[dimensions], dtype)
    _, view = device_view(gpu, array)
    text, box = load_kernel(dimensions), BOXES[dimensions]
    made = weft.tensor_map(view, box)
    corners = [
        (0,) * dimensions,
        tuple(n - 3 for n in array.shape),
        tuple(-2 for _ in array.shape),
        (1000,) * dimensions,
    ]
    for at in corners:
        check_load(gpu, text, made, box_of(array, at, box), at[::-1])


@pytest.mark.parametrize("name", SWIZZLES)
@pytest.mark.parametrize("place", [0, 128, 896])
def test_swizzle(gpu, name, place):
    array = numbers((40, 96), np.float16)
    text, device = load_kernel(2), gpu.array(array)
    for inner in (8, 16, 32, 64):
        if name != "none" and 2 * inner > tm.SWIZZLE_BYTES[dict(none=0, **{"32B": 1, "64B": 2}).get(name, 3)]:
            continue
        made = weft.tensor_map(device, (19, inner), swizzle=name)
        for at in ((0, 0), (30, 40), (-5, -3)):
            check_load(gpu, text, made, box_of(array, at, (19, inner)), at[::-1], name, place=place)


def test_swizzle_of_96_bytes(gpu):
    array = numbers((20, 48), np.float16)
    made = weft.tensor_map(gpu.array(array), (20, 48), swizzle="96B")
    check_load(gpu, load_kernel(2), made, array, (0, 0), "32B")  # the manual gives both the same table


@pytest.mark.parametrize("dtype,fill", [("float16", 0x7FFF), ("float32", 0x7FFFFFFF), ("float64", (1 << 63) - 1)])
def test_nan_fill(gpu, dtype, fill):
    array = padded((9, 20), dtype)
    kind = np.dtype(f"u{np.dtype(dtype).itemsize}")
    _, view = device_view(gpu, array)
    made = weft.tensor_map(view, (6, 16), fill="nan")
    for at in ((-2, -3), (6, 11), (100, 0)):
        expected = box_of(np.ascontiguousarray(array).view(kind), at, (6, 16), fill=fill)
        check_load(gpu, load_kernel(2), made, expected, at[::-1])
        assert np.isnan(expected.view(dtype)).any()


@pytest.mark.parametrize("element", ["f32.ftz", "tf32", "tf32.ftz"])
def test_elements_that_loads_change(gpu, element):
    bits = RNG.integers(0, 1 << 32, (16, 32), np.uint64).astype(np.uint32)
    bits[0, :6] = (1, 0x80000001, 0x007FFFFF, 0x7F800001, 0x7F7FFFFF, 0x3F801000)
    bits[1, :4] = (0x3F803000, 0xFF800000, 0x3F800FFF, 0x3F801001)
    expected = bits.copy()
    if element.endswith("ftz"):
        tiny = expected & 0x7FFFFFFF < 0x00800000
        expected[tiny] &= 0x80000000
    if element.startswith("tf32"):
        numbers_ = expected & 0x7FFFFFFF < 0x7F800000
        rounded = expected.astype(np.uint64) + 0xFFF + (expected >> 13 & 1)
        expected[numbers_] = (rounded & 0xFFFFE000)[numbers_].astype(np.uint32)
    made = weft.tensor_map(gpu.array(bits.view(np.float32)), (16, 32), element=element, swizzle="128B")
    check_load(gpu, load_kernel(2), made, expected, (0, 0), "128B")


def test_element_strides(gpu):
    array = numbers((30, 12, 64), np.int32)
    device = gpu.array(array)
    for steps in ((1, 2, 1), (3, 1, 1), (8, 5, 1)):
        made = weft.tensor_map(device, (20, 7, 16), element_strides=steps, swizzle="64B")
        for at in ((0, 0, 0), (13, 6, 50), (-7, -4, -2)):
            expected = box_of(array, at, (20, 7, 16), steps)
            check_load(gpu, load_kernel(3), made, expected, at[::-1], "64B")


@pytest.mark.parametrize("interleave,channels,swizzles", [("16B", 8, SWIZZLES), ("32B", 16, ("32B",))])
def test_interleave(gpu, interleave, channels, swizzles):
    """Slices of channels are the innermost dimension."""
    array = numbers((2, 3, 6, 7, channels), np.float16)
    device = gpu.array(array)
    for name in swizzles:
        made = weft.tensor_map(device, (1, 2, 4, 5, channels), interleave=interleave, swizzle=name)
        for at in ((0, 1, 2, 3, 0), (1, -1, -2, 5, 0)):
            check_load(gpu, load_kernel(5), made, box_of(array, at, (1, 2, 4, 5, channels)), at[::-1], name)


@pytest.mark.parametrize("name", ["none", "128B", "64B"])
def test_gather(gpu, name):
    array = numbers((50, 72), np.float16)
    made = weft.tensor_map(gpu.array(array), (1, 32), swizzle=name)
    text = load_kernel(2, "tile::gather4")
    for column, rows in ((0, (3, 40, 3, 7)), (48, (49, 50, -1, 0)), (-8, (1, 2, 3, 4))):
        expected = np.concatenate([box_of(array, (row, column), (1, 32)) for row in rows])
        check_load(gpu, text, made, expected, (column, *rows), name)


IMAGES = {3: (6, 13, 24), 4: (5, 9, 11, 24), 5: (3, 5, 6, 7, 24)}
CORNERS = {3: ((-1,), (-1,)), 4: ((-1, 0), (-1, -2)), 5: ((0, -1, -2), (-1, 0, -1))}


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("dimensions", [3, 4, 5])
def test_im2col(gpu, dimensions, steps):
    array = numbers(IMAGES[dimensions], np.float16)
    lower, upper = CORNERS[dimensions]
    spatial = (steps,) * (dimensions - 2)
    made = weft.im2col_map(gpu.array(array), lower, upper, 16, 50, element_strides=(1, *spatial, 1), swizzle="32B")
    text = load_kernel(dimensions, "im2col")
    for image, offset, channel in ((0, 0, 0), (1, 2, 8), (array.shape[0] - 1, 1, -4)):
        at = (image, *lower, channel)
        offsets = (offset,) * (dimensions - 2)
        expected = im2col_of(array, at, lower, upper, 16, 50, offsets, spatial)
        check_load(gpu, text, made, expected, at[::-1], "32B", offsets[::-1])


def test_im2col_is_a_convolution(gpu):
    """The nine loads of a 3 x 3 convolution give the matrix whose product with the filter is the convolution."""
    torch = pytest.importorskip("torch")
    image, weights = numbers((2, 6, 7, 8), np.float32), numbers((8, 3, 3, 8), np.float32)
    made = weft.im2col_map(gpu.array(image), (-1, -1), (-1, -1), 8, 84)
    total = np.zeros((84, 8), np.float32)
    for r, s in itertools.product(range(3), range(3)):
        found = run(gpu, load_kernel(4, "im2col"), made, FILL, (0, -1, -1, 0), (s, r), 0, 84 * 32)
        total += found[: 84 * 32].view(np.float32).reshape(84, 8) @ weights[:, r, s].T
    expected = torch.nn.functional.conv2d(
        torch.tensor(image).permute(0, 3, 1, 2), torch.tensor(weights).permute(0, 3, 1, 2), padding=1
    )
    np.testing.assert_allclose(total.reshape(2, 6, 7, 8), expected.permute(0, 2, 3, 1).numpy(), rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- stores
def shared_with(data: bytes, name: str, place: int = 0) -> np.ndarray:
    out = FILL.copy()
    kept = swizzle(data, name, place)
    out[place : place + len(kept)] = np.frombuffer(kept, np.uint8)
    return out


def put(array: np.ndarray, at, values: np.ndarray, steps=None) -> np.ndarray:
    """The array with a box replaced, where it is inside."""
    out = array.copy()
    for index in np.ndindex(*values.shape):
        where = tuple(x + i * s for x, i, s in zip(at, index, steps or (1,) * array.ndim))
        if all(0 <= x < n for x, n in zip(where, array.shape)):
            out[where] = values[index]
    return out


@pytest.mark.parametrize("name", [x for x in SWIZZLES if not x.endswith("flip_8B")])
@pytest.mark.parametrize("dimensions", range(1, 6))
def test_store(gpu, dimensions, name):
    array, box = numbers((*SHAPES[dimensions][:-1], 48), np.uint32), (*BOXES[dimensions][:-1], 8)
    for at in ((0,) * dimensions, tuple(n - 3 for n in array.shape), tuple(-2 for _ in array.shape)):
        device, values = gpu.array(array), numbers(box, np.uint32)
        made = weft.tensor_map(device, box, swizzle=name)
        run(gpu, store_kernel(dimensions), made, shared_with(values.tobytes(), name), at[::-1])
        np.testing.assert_array_equal(device.numpy(), put(array, at, values))


def test_store_with_strides_and_bytes(gpu):
    array = numbers((31, 50), np.uint8)
    whole = np.zeros((31, 64), np.uint8)
    whole[:, :50] = array
    device = gpu.array(whole)
    values = numbers((8, 48), np.uint8)
    made = weft.tensor_map(device[:, :50], (15, 48), element_strides=(2, 1))
    for at in ((3, 5), (25, -7)):
        run(gpu, store_kernel(2), made, shared_with(values.tobytes(), "none"), at[::-1])
        array = put(array, at, values, (2, 1))
        np.testing.assert_array_equal(device.numpy()[:, :50], array)
        np.testing.assert_array_equal(device.numpy()[:, 50:], 0)


def test_scatter(gpu):
    array, values = numbers((50, 72), np.float16), numbers((4, 32), np.float16)
    for column, rows in ((8, (3, 40, 5, 7)), (56, (49, 50, -1, 0))):
        device = gpu.array(array)
        made = weft.tensor_map(device, (1, 32), swizzle="64B")
        run(gpu, store_kernel(2, "tile::scatter4"), made, shared_with(values.tobytes(), "64B"), (column, *rows))
        expected = array
        for row, line in zip(rows, values):
            expected = put(expected, (row, column), line[None])
        np.testing.assert_array_equal(device.numpy(), expected)


def test_store_of_pixels(gpu):
    array = numbers(IMAGES[4], np.float16)
    (lower, upper), device = CORNERS[4], gpu.array(array)
    values = numbers((30, 8), np.float16)
    made = weft.im2col_map(device, lower, upper, 8, 30)
    run(gpu, store_kernel(4, "im2col_no_offs"), made, shared_with(values.tobytes(), "none"), (8, 2, 3, 1))
    marks = np.arange(array.size).reshape(array.shape).astype(np.int64)
    where = im2col_of(marks, (1, 3, 2, 8), lower, upper, 8, 30, (0, 0), fill=-1)
    expected = array.reshape(-1).copy()
    expected[where[where >= 0]] = values[where >= 0]
    np.testing.assert_array_equal(device.numpy(), expected.reshape(array.shape))


# ---------------------------------------------------------------- reductions
def reduced(operation: str, old: np.ndarray, new: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        match operation:
            case "inc":
                return np.where(old >= new, 0, old + 1).astype(old.dtype)
            case "dec":
                return np.where((old == 0) | (old > new), new, old - 1).astype(old.dtype)
    functions = {"add": np.add, "min": np.fmin, "max": np.fmax, "and": np.bitwise_and, "or": np.bitwise_or,
                 "xor": np.bitwise_xor}  # fmt: skip
    with np.errstate(over="ignore"):
        return functions[operation](old, new)


INTEGERS = ("uint32", "int32", "uint64", "int64")
REDUCTIONS = [
    *itertools.product(("add", "min", "max", "and", "or", "xor"), INTEGERS), ("inc", "uint32"), ("dec", "uint32"),
    ("add", "float16"), ("add", "float32"), ("add", "float64"), ("min", "float16"), ("max", "float16"),
]  # fmt: skip


@pytest.mark.parametrize("operation,dtype", REDUCTIONS)
def test_reduce(gpu, operation, dtype):
    array, values = numbers((20, 32), dtype), numbers((7, 16), dtype)
    if operation in ("inc", "dec"):
        array, values = array % 9, values % 9
    device = gpu.array(array)
    made = weft.tensor_map(device, (7, 16), swizzle="none" if dtype.endswith("64") else "64B")
    name = "none" if dtype.endswith("64") else "64B"
    for at in ((4, 8), (16, 20), (-3, -5)):
        before = device.numpy()
        run(gpu, store_kernel(2, "", operation), made, shared_with(values.tobytes(), name), at[::-1])
        expected = put(before, at, reduced(operation, box_of(before, at, (7, 16)), values))
        np.testing.assert_array_equal(device.numpy(), expected)


def test_reduce_bfloat16(gpu):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    array = numbers((16, 32), np.float32).astype(ml_dtypes.bfloat16)
    values = numbers((16, 32), np.float32).astype(ml_dtypes.bfloat16)
    for operation in ("add", "min", "max"):
        device = gpu.array(array)
        made = weft.tensor_map(device, (16, 32), swizzle="64B")
        run(gpu, store_kernel(2, "", operation), made, shared_with(values.tobytes(), "64B"), (0, 0))
        found = device.numpy().astype(np.float32)
        np.testing.assert_array_equal(found, reduced(operation, array, values).astype(np.float32))


def test_reduce_flushes_subnormal_sums(gpu):
    tiny = np.float32(1e-40)
    device = gpu.array(np.full((4, 8), tiny))
    made = weft.tensor_map(device, (4, 8))
    run(gpu, store_kernel(2, "", "add"), made, shared_with(np.full((4, 8), tiny).tobytes(), "none"), (0, 0))
    np.testing.assert_array_equal(device.numpy(), 0)


def test_reductions_of_blocks_add_up(gpu):
    """Blocks on several threads add to one tile."""
    several = weft.Device("b200", threads=2)
    device = several.zeros((8, 32), np.float32)
    made = weft.tensor_map(device, (8, 32), swizzle="128B")
    ones = several.array(shared_with(np.ones((8, 32), np.float32).tobytes(), "none"))
    after = several.zeros(SHARED_BYTES, np.uint8)
    several.load(store_kernel(2, "", "add"))["k"][500, 32](made, ones, after, *(0,) * 10)
    np.testing.assert_array_equal(device.numpy(), 500)


def test_undefined_reduction(gpu):
    made = weft.tensor_map(gpu.zeros((8, 32), np.uint8), (8, 32))
    with pytest.raises(IllegalInstructionError, match="the reduction is not defined for the map's element type"):
        run(gpu, store_kernel(2, "", "add"), made, FILL, (0, 0))


# ---------------------------------------------------------------- the reference interpreter
def raw_map(address, **changes) -> tm.TensorMap:
    fields = {"element": 6, "sizes": (40, 20), "strides": (80,), "box": (32, 8), "element_strides": (1, 1), **changes}
    return tm.TensorMap(address, **fields)


CASES = [
    (load_kernel(2), {}, (3, -2), ()),
    (load_kernel(2), {"swizzle": 2, "fill": 1}, (20, 15), ()),
    (load_kernel(2), {"swizzle": 3, "atomicity": 2, "element_strides": (1, 3)}, (-4, 0), ()),
    (load_kernel(2, "tile::gather4"), {"box": (32, 1), "swizzle": 3}, (8, 0, 19, 20, 5), ()),
    (load_kernel(3), {"sizes": (8, 10, 7), "strides": (16, 160), "box": (8, 3, 4), "element_strides": (1, 1, 2),
                      "interleave": 1, "swizzle": 1}, (0, 8, 2), ()),
    (load_kernel(3, "im2col"), {"sizes": (16, 7, 5), "strides": (32, 224), "box": (16, 1, 1), "pixels": 20, "mode": 1,
                                "element_strides": (1, 2, 1), "lower": (-1,), "upper": (-1,)}, (0, -1, 1), (1,)),
    (store_kernel(2), {"swizzle": 2}, (-5, 15), ()),
    (store_kernel(2, "tile::scatter4"), {"box": (32, 1)}, (8, 0, 19, 20, 5), ()),
    (store_kernel(2, "", "max"), {"swizzle": 2}, (-5, 15), ()),
    (store_kernel(2, "", "add"), {"element": 2, "sizes": (20, 20), "box": (16, 8)}, (3, 15), ()),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(CASES)))
def test_compiled_and_reference(gpu, case):
    text, changes, coordinates, offsets = CASES[case]
    before = numbers(SHARED_BYTES, np.uint8)
    tensor = numbers(2048, np.uint16)
    values = [*coordinates, *(0,) * (5 - len(coordinates)), *offsets, *(0,) * (3 - len(offsets))]
    total = 512 if "gather4" not in text else 256
    total = {4: 8 * 3 * 2 * 2, 5: 20 * 32, 2: 3 * 64}.get(case, total)
    memory = ReferenceMemory()
    places = [memory.allocate(n) for n in (tensor.nbytes, SHARED_BYTES, SHARED_BYTES)]
    memory.write(places[0], tensor.tobytes())
    memory.write(places[1], before.tobytes())
    words = b"".join(struct.pack("<I", x & 0xFFFFFFFF) for x in (*values, 0, total))
    params = raw_map(places[0], **changes).encode() + struct.pack("<2Q", *places[1:]) + words
    run_kernel(parse_module(text), "k", 1, 32, params, memory)
    device = gpu.array(tensor)
    found = run(gpu, text, raw_map(device.ptr, **changes).encode(), before, coordinates, offsets, 0, total)
    np.testing.assert_array_equal(found, np.frombuffer(memory.read(places[2], SHARED_BYTES), np.uint8))
    np.testing.assert_array_equal(device.numpy(), np.frombuffer(memory.read(places[0], tensor.nbytes), np.uint16))


# ---------------------------------------------------------------- refusals
REFUSED = [
    (b"\0" * 128, "it is not a tensor map"),
    (raw_map(0x1000, sizes=(40,), strides=(), box=(32,), element_strides=(1,)).encode(), "dimensions are not the map's rank"),
    (raw_map(0x1008).encode(), "address is not a multiple of 16"),
    (raw_map(0x1000, strides=(84,)).encode(), "a stride is not a multiple of 16"),
    (raw_map(0x1000, box=(300, 8)).encode(), "a box side must be 1 to 256"),
    (raw_map(0x1000, element_strides=(1, 9)).encode(), "an element stride 1 to 8"),
    (raw_map(0x1000, box=(33, 8)).encode(), "rows must be a multiple of 16 bytes"),
    (raw_map(0x1000, swizzle=1).encode(), "fit the swizzle"),
    (raw_map(0x1000, element=14).encode(), "the element type, interleave, swizzle"),
    (raw_map(0x1000, fill=1, element=1).encode(), "do not go together"),
    (raw_map(0x1000, mode=1, pixels=3).encode(), "the map's mode"),
    (raw_map(0x1000, present=1).encode(), "has not been set by tensormap.replace"),
]  # fmt: skip


@pytest.mark.parametrize("data,why", REFUSED)
def test_refused_map(gpu, data, why):
    with pytest.raises(IllegalInstructionError, match=why) as caught:
        run(gpu, load_kernel(2), data, FILL, (3, -4))
    assert "coordinates {3, -4}" in str(caught.value)
    assert "cp.async.bulk.tensor.2d" in str(caught.value)


def test_misaligned_shared_memory(gpu):
    made = weft.tensor_map(gpu.zeros((8, 32)), (4, 32))
    with pytest.raises(IllegalInstructionError, match="shared memory address is not a multiple of 128"):
        run(gpu, load_kernel(2), made, FILL, (0, 0), place=64)
    with pytest.raises(IllegalInstructionError, match="does not fit in the block's shared memory"):
        run(gpu, load_kernel(2), made, FILL, (0, 0), place=SHARED_BYTES)


def test_flip_cannot_be_stored(gpu):
    made = weft.tensor_map(gpu.zeros((8, 32)), (4, 32), swizzle="128B_atom_32B_flip_8B")
    with pytest.raises(IllegalInstructionError, match="cannot undo the swizzle with 8-byte flip"):
        run(gpu, store_kernel(2), made, FILL, (0, 0))


def test_outside_of_the_allocation(gpu):
    """A map that says more rows than the memory has."""
    device = gpu.zeros((4, 64), np.float32)
    made = tm.TensorMap(device.ptr, 7, (64, 8), (256,), (32, 8), (1, 1)).encode()
    run(gpu, load_kernel(2), made, FILL, (0, -4), bytes_=1024)
    with pytest.raises(IllegalAddressError, match=r"coordinates \{0, 0\}.*past the end of array of shape \(4, 64\)"):
        run(gpu, load_kernel(2), made, FILL, (0, 0), bytes_=1024)
    with pytest.raises(IllegalAddressError, match=r"coordinates \{32, 1\}"):
        run(gpu, store_kernel(2), made, FILL, (32, 1))


# ---------------------------------------------------------------- encoding
GOOD = {"element": "f16", "address": 0x1000, "sizes": (64, 100), "strides": (128,), "box": (64, 8)}


@pytest.mark.parametrize("changes,why", [
    ({"element": "f8"}, "element type"), ({"address": 0x1008}, "multiple of 16"), ({"sizes": (0, 100)}, "1 to 2"),
    ({"sizes": (1 << 33, 100)}, "1 to 2"), ({"strides": (120,)}, "multiples of 16"),
    ({"strides": (1 << 40,)}, "below 2"), ({"box": (257, 8)}, "1 to 256"), ({"box": (64, 0)}, "1 to 256"),
    ({"box": (7, 8)}, "multiple of 16 bytes"), ({"swizzle": 64}, "wider than the swizzle"),
    ({"swizzle": "256B"}, "swizzle: found"), ({"element_strides": (1, 9)}, "element strides must be 1 to 8"),
    ({"interleave": "16B"}, "at least 3 dimensions"), ({"fill": "one"}, "fill: found"),
    ({"fill": "nan", "element": "u16"}, "floating type"), ({"box": (64,)}, "found 1 numbers, expected 2"),
    ({"sizes": (1,) * 6, "strides": (16,) * 5, "box": (8,) * 6}, "1 to 5"),
    ({"sizes": (16, 2, 2), "strides": (32, 64), "box": (16, 1, 1), "interleave": "32B"}, "needs swizzle 32B"),
    ({"sizes": (16, 2, 2), "strides": (32, 64), "box": (16, 1, 1), "interleave": "16B"}, "one slice of 16 bytes"),
])  # fmt: skip
def test_encode_refuses(changes, why):
    encode_tiled(**GOOD)
    with pytest.raises(InvalidValueError, match=why):
        encode_tiled(**{**GOOD, **changes})


PIXELS = {"element": "f16", "address": 0x1000, "sizes": (64, 9, 9, 2), "strides": (128, 1152, 10368),
          "lower": (-1, -1), "upper": (-1, -1), "channels": 64, "pixels": 128}  # fmt: skip


@pytest.mark.parametrize("changes,why", [
    ({"lower": (-129, 0)}, "must be -128 to 127"), ({"lower": (-1,)}, "found 1 numbers, expected 2"),
    ({"pixels": 1025}, "1 to 1024"), ({"channels": 257}, "1 to 256"), ({"upper": (-20, 0)}, "empty along W"),
    ({"channels": 65}, "multiple of 16 bytes"), ({"swizzle": 32}, "wider than the swizzle"),
    ({"sizes": (64, 9), "strides": (128,), "lower": (), "upper": ()}, "3, 4 or 5 dimensions"),
])  # fmt: skip
def test_encode_im2col_refuses(changes, why):
    encode_im2col(**PIXELS)
    with pytest.raises(InvalidValueError, match=why):
        encode_im2col(**{**PIXELS, **changes})


def test_encode_refuses_packed_types():
    with pytest.raises(UnsupportedError, match="b4x16"):
        encode_tiled(**{**GOOD, "element": "b4x16"})


def test_maps_of_arrays(gpu):
    device = gpu.zeros((3, 5, 64), np.float16)
    found = tm.decode(bytes(weft.tensor_map(device, (1, 4, 32), swizzle=64)))
    assert (found.address, found.sizes, found.strides, found.box) == (device.ptr, (64, 5, 3), (128, 640), (32, 4, 1))
    assert (found.element_name, found.swizzle) == ("f16", 2)
    with pytest.raises(TypeError, match="expected a device array"):
        weft.tensor_map(np.zeros((4, 4)), (4, 4))
    with pytest.raises(TypeError, match="has 4 bytes, dtype float16 has 2"):
        weft.tensor_map(device, (1, 4, 32), element="tf32")
    with pytest.raises(InvalidValueError, match="last dimension must be contiguous"):
        weft.tensor_map(device[:, :, ::2], (1, 4, 8))
