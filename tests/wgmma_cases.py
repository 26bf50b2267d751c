"""Cases of wgmma: a form, where its matrices lie in shared memory, numbers; kernel text and expected D leave.

The layouts are written down here once more, from the manual's table of canonical layouts (PTX ISA, 9.7.15.5.1.2.1.3) in
the notation of CuTe: a matrix element's coordinates go through shapes and strides to an offset, and the offset's bytes
through Swizzle<b, 4, 3>. The engine and the interpreter have their own words for the same.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np

from weft.ptx.parser import parse_module
from weft.reference import ReferenceMemory, run_kernel

BITS = {"f16": 16, "bf16": 16, "tf32": 32, "e4m3": 8, "e5m2": 8, "s8": 8, "u8": 8, "b1": 1}
SWIZZLE_BITS = {16: 0, 32: 1, 64: 2, 128: 3}
MODES = {16: 0, 128: 1, 64: 2, 32: 3}
THREADS = 128


@dataclass(frozen=True)
class Layout:
    """A matrix [rows, k] in shared memory: `width` 16 (no swizzle), 32, 64 or 128; offsets in bytes. `along` skips
    this many bytes of k inside the swizzled row. `line` is the 128-byte line at which the pattern begins."""

    width: int = 128
    major: str = "k"
    start: int = 0
    stride: int = 0
    leading: int = 0
    along: int = 0
    line: int = 0

    def offset(self, row: int, k: int, bits: int) -> int:
        """The byte at which the bits of an element (row along m or n) begin, before swizzling."""
        t = 128 // bits  # elements of 16 bytes
        wide = self.width // 16
        if self.major == "k":
            if wide == 1:  # ((8, m), (T, 2k)) : ((1T, SBO), (1, LBO))
                return row % 8 * 16 + row // 8 * self.stride + k % t * bits // 8 + k // t * self.leading
            # ((8, m), (T, 2k)) : ((wT, SBO), (1, T))
            return row % 8 * self.width + row // 8 * self.stride + k * bits // 8
        inner = row % t * bits // 8
        if wide == 1:  # ((T, 1, m), (8, k)) : ((1, T, SBO), (1T, LBO))
            return inner + row // t * self.stride + k % 8 * 16 + k // 8 * self.leading
        # ((T, w, m), (8, k)) : ((1, T, LBO), (wT, SBO))
        across = row // t % wide * 16 + row // (t * wide) * self.leading
        return inner + across + k % 8 * self.width + k // 8 * self.stride

    def place(self, row: int, k: int, bits: int) -> int:
        """The address at which the byte of an element is found."""
        address = self.start + 128 * self.line + self.along + self.offset(row, k, bits)
        relative = address - 128 * self.line  # the pattern begins at a multiple of 1024 in these
        bbits = SWIZZLE_BITS[self.width]
        return 128 * self.line + (relative ^ (relative >> 7 & (1 << bbits) - 1) << 4)

    @property
    def descriptor(self) -> int:
        start = self.start + 128 * self.line + self.along
        return (
            (start & 0x3FFFF) >> 4
            | self.leading >> 4 << 16
            | self.stride >> 4 << 32
            | (self.line & 7) << 49
            | (MODES[self.width] << 62)
        )

    def fill(self, image: bytearray, patterns: np.ndarray, bits: int) -> None:
        """Put element patterns [rows, k] into an image of shared memory."""
        for (row, k), pattern in np.ndenumerate(patterns):
            at = self.place(row, k, max(bits, 8) if bits > 1 else 1)
            if bits == 1:
                image[at] |= int(pattern) << (k % 8)
            else:
                image[at : at + bits // 8] = int(pattern).to_bytes(bits // 8, "little")


def patterns_of(numbers: np.ndarray, type_: str) -> np.ndarray:
    """Numbers that the type holds exactly, as its patterns."""
    if type_ == "f16":
        return numbers.astype(np.float16).view(np.uint16)
    if type_ == "bf16":
        return numbers.astype(np.float32).view(np.uint32) >> 16
    if type_ == "tf32":
        return numbers.astype(np.float32).view(np.uint32)
    if type_ in ("s8", "u8"):
        return numbers.astype(np.int8 if type_ == "s8" else np.uint8).view(np.uint8)
    if type_ == "b1":
        return numbers.astype(np.uint8)
    import ml_dtypes

    kind = ml_dtypes.float8_e4m3fn if type_ == "e4m3" else ml_dtypes.float8_e5m2
    return numbers.astype(kind).view(np.uint8)


@dataclass
class Case:
    """One wgmma.mma_async. A without a layout is in registers. sparse: A has half of its columns, `selector` says
    which lanes hold the metadata. scale is the text of scale-d."""

    n: int
    a_type: str
    b_type: str
    d_type: str
    b: Layout
    a: Layout | None = None
    signs: tuple[int, int] = (1, 1)
    scale: str = "%p1"
    keep: bool = True
    saturate: bool = False
    sparse: bool = False
    selector: int = 0
    seed: int = 0
    shared_bytes: int = 0
    words: dict = field(default_factory=dict)

    @property
    def k(self) -> int:
        return 256 // BITS[self.a_type] * (2 if self.sparse else 1)

    @property
    def registers(self) -> int:
        return self.n // 4 if self.d_type == "f16" else self.n // 2

    @property
    def instruction(self) -> str:
        d = ", ".join(f"%d{i}" for i in range(self.registers))
        a = "{%a0, %a1, %a2, %a3}" if self.a is None else "%rd10"
        tail = f", {self.scale}"
        if self.sparse:
            tail = f", %m0, {self.selector}{tail}"
        if self.d_type != "s32":
            tail += f", {self.signs[0]}, {self.signs[1]}"
            if BITS[self.a_type] == 16:
                tail += "" if self.a is None else f", {int(self.a.major == 'mn')}"
                tail += f", {int(self.b.major == 'mn')}"
        sat = ".satfinite" if self.saturate else ""
        popc = ".and.popc" if self.a_type == "b1" else ""
        sp = ".sp" if self.sparse else ""
        shape = f"m64n{self.n}k{self.k}"
        return (
            f"wgmma.mma_async{sp}.sync.aligned.{shape}{sat}.{self.d_type}.{self.a_type}.{self.b_type}{popc} "
            f"{{{d}}}, {a}, %rd11{tail};"
        )

    def text(self) -> str:
        """A kernel of 128 threads k(image, d, a, metadata): copies the image to shared memory, multiplies, writes D
        back. Thread t's registers lie at d + 4 * (t + 128 * r)."""
        registers = self.registers
        body = [
            "ld.param.u64 %rd0, [image]; ld.param.u64 %rd1, [d]; ld.param.u64 %rd2, [a]; ld.param.u64 %rd3, [meta];",
            "mov.u32 %r0, %tid.x; mul.wide.u32 %rd4, %r0, 4; add.u64 %rd1, %rd1, %rd4; add.u64 %rd2, %rd2, %rd4;",
            "add.u64 %rd3, %rd3, %rd4; shl.b32 %r1, %r0, 4; mul.wide.u32 %rd4, %r0, 16; add.u64 %rd0, %rd0, %rd4;",
            "COPY:",
            f"setp.ge.u32 %p0, %r1, {self.shared_bytes};",
            "@%p0 bra COPIED;",
            "ld.global.v4.b32 {%r4, %r5, %r6, %r7}, [%rd0]; st.shared.v4.b32 [%r1], {%r4, %r5, %r6, %r7};",
            f"add.u32 %r1, %r1, {16 * THREADS}; add.u64 %rd0, %rd0, {16 * THREADS}; bra COPY;",
            "COPIED:",
            "bar.sync 0;",
            *(f"ld.global.b32 %d{i}, [%rd1+{4 * THREADS * i}];" for i in range(registers)),
            *(f"ld.global.b32 %a{i}, [%rd2+{4 * THREADS * i}];" for i in range(4)),
            "ld.global.b32 %m0, [%rd3];",
            f"mov.b64 %rd10, {self.a.descriptor if self.a else 0}; mov.b64 %rd11, {self.b.descriptor};",
            f"setp.{'ge' if self.keep else 'lt'}.u32 %p1, %r0, 0;",
            "fence.proxy.async; wgmma.fence.sync.aligned;",
            self.instruction,
            "wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;",
            *(f"st.global.b32 [%rd1+{4 * THREADS * i}], %d{i};" for i in range(registers)),
            "ret;",
        ]
        return "\n".join([
            ".version 8.4", ".target sm_90a", ".address_size 64", ".extern .shared .align 1024 .b8 memory[];",
            ".visible .entry k(.param .u64 image, .param .u64 d, .param .u64 a, .param .u64 meta)", "{",
            f".reg .b32 %r<9>; .reg .b64 %rd<12>; .reg .pred %p<2>; .reg .b32 %d<{registers}>; .reg .b32 %a<4>;",
            ".reg .b32 %m<1>;", *body, "}", "",
        ])  # fmt: skip

    # ------------------------------------------------------------ numbers
    def prepare(self, numbers: str = "small") -> None:
        """Choose the numbers: "small" integers, whose sums are exact, or "random" patterns of everyday size."""
        rng = np.random.default_rng(self.seed)

        def draw(shape: tuple[int, int], type_: str) -> np.ndarray:
            if type_ == "b1":
                return rng.integers(0, 2, shape)
            if type_ in ("s8", "u8"):
                return rng.integers(-128, 128, shape) if type_ == "s8" else rng.integers(0, 256, shape)
            if numbers == "small":
                return rng.integers(-4, 5, shape).astype(np.float64)
            return rng.standard_normal(shape)

        stored = self.k // 2 if self.sparse else self.k
        a, b = draw((64, stored), self.a_type), draw((self.n, self.k), self.b_type)
        a_bits, b_bits = patterns_of(a, self.a_type), patterns_of(b, self.b_type)
        if self.d_type == "s32":
            d = rng.integers(-1000, 1000, (64, self.n))
            if self.saturate:
                d = d + np.where(rng.random(d.shape) < 0.5, 2**31 - 1000, -(2**31) + 1000)
        else:
            d = rng.integers(-8, 9, (64, self.n)).astype(np.float64)
        self.words = {"a": a, "b": b, "d": d, "a_bits": a_bits, "b_bits": b_bits}
        if self.sparse:
            self._choose_places(rng)
        self._lay_out()

    def _choose_places(self, rng: np.random.Generator) -> None:
        """Which of A's columns each row stores, and the metadata words [128 threads]."""
        rows, stored = self.words["a"].shape
        places = np.zeros((rows, stored), np.int64)
        meta = np.zeros(THREADS, np.int64)
        eight = BITS[self.a_type] == 8
        if self.a_type == "tf32":
            picks = rng.integers(0, 2, (rows, stored))
            places = 2 * np.arange(stored) + picks
            codes, bits, per_code = np.where(picks == 0, 0b0100, 0b1110), 4, 1
        else:
            first = rng.integers(0, 3, (rows, stored // 2))
            second = np.array([[rng.integers(x + 1, 4) for x in row] for row in first])
            places = np.stack([first, second], 2).reshape(rows, stored) + 4 * (np.arange(stored) // 2)
            codes, bits, per_code = first | second << 2, 4, 2
        # Of four neighbouring lanes two have metadata, of 16 bits for row g and 16 for row g + 8; with elements of
        # eight bits all four: two have 32 bits for row g, two for row g + 8. Later lanes have the second half of k.
        for row in range(rows):
            warp, g, high = row // 16, row % 8, row % 16 // 8
            half = len(codes[row]) // 2
            for i, code in enumerate(codes[row]):
                lane, shift = 2 * self.selector + i // half, bits * (i % half) + 16 * high
                if eight:
                    lane, shift = high + 2 * (i // half), bits * (i % half)
                meta[32 * warp + 4 * g + lane] |= int(code) << shift
        assert per_code * len(codes[0]) == stored
        self.words |= {"places": places, "meta": meta}

    def _lay_out(self) -> None:
        size = 0
        for layout, rows, depth, bits in self._matrices():
            size = max(size, max(layout.place(r, c, bits) for r in range(rows) for c in range(depth)) + 1)
        self.shared_bytes = -(-size // 1024) * 1024
        image = bytearray(b"\xee" * self.shared_bytes) if self.a_type != "b1" else bytearray(self.shared_bytes)
        for (layout, _, _, bits), name in zip(self._matrices(), ("b", "a")):
            layout.fill(image, self.words[f"{name}_bits"], bits)
        self.words["image"] = np.frombuffer(bytes(image), np.uint8)
        fragments = np.zeros((4, THREADS), np.uint32)
        if self.a is None:
            per = 32 // BITS[self.a_type]
            for r in range(4):
                for t in range(THREADS):
                    row = t // 32 * 16 + t % 32 // 4 + 8 * (r % 2)
                    column = 4 * per * (r // 2) + t % 4 * per
                    for i in range(per):
                        fragments[r, t] |= int(self.words["a_bits"][row, column + i]) << (BITS[self.a_type] * i)
        self.words["fragments"] = fragments
        self.words["accumulators"] = self.to_fragments(self.words["d"])

    def _matrices(self):
        found = [(self.b, self.n, self.k, BITS[self.b_type])]
        if self.a is not None:
            found.append((self.a, 64, self.words["a"].shape[1], BITS[self.a_type]))
        return found

    def _spots(self):
        for row in range(64):
            for column in range(self.n):
                thread = row // 16 * 32 + row % 8 * 4 + column % 8 // 2
                element = column // 8 * 4 + row % 16 // 8 * 2 + column % 2
                yield row, column, thread, element

    def to_fragments(self, d: np.ndarray) -> np.ndarray:
        """D [64, n] as registers [registers, 128 threads]."""
        words = np.zeros((self.registers, THREADS), np.uint32)
        if self.d_type == "f16":
            bits = d.astype(np.float16).view(np.uint16)
        else:
            bits = (d.astype(np.float32) if self.d_type == "f32" else d.astype(np.int32)).view(np.uint32)
        for row, column, thread, element in self._spots():
            if self.d_type == "f16":
                words[element // 2, thread] |= int(bits[row, column]) << 16 * (element % 2)
            else:
                words[element, thread] = bits[row, column]
        return words

    def from_fragments(self, words: np.ndarray) -> np.ndarray:
        """Registers as D [64, n], float64 or int64."""
        d = np.zeros((64, self.n))
        if self.d_type == "f16":
            halves = words.view(np.uint16).reshape(self.registers, THREADS, 2).view(np.float16)
            for row, column, thread, element in self._spots():
                d[row, column] = halves[element // 2, thread, element % 2]
            return d
        numbers = words.view(np.float32 if self.d_type == "f32" else np.int32)
        for row, column, thread, element in self._spots():
            d[row, column] = numbers[element, thread]
        return d

    def expected(self) -> np.ndarray:
        """D in float64 or exact integers."""
        a = self.words["a"].astype(np.float64) * self.signs[0]
        b = self.words["b"].astype(np.float64) * self.signs[1]
        if self.sparse:
            full = np.zeros((64, self.k))
            np.put_along_axis(full, self.words["places"], a, 1)
            a = full
        d = a @ b.T + (self.words["d"] if self.keep else 0)
        if self.saturate:
            return np.clip(d, -(2.0**31), 2.0**31 - 1)
        return d

    # ------------------------------------------------------------ runs
    def run(self, gpu) -> np.ndarray:
        """Registers of D as the engine leaves them."""
        d = gpu.array(self.words["accumulators"])
        meta = self.words.get("meta", np.zeros(THREADS)).astype(np.uint32)
        kernel = gpu.load(self.text(), "wgmma.ptx")["k"]
        kernel[1, THREADS, None, self.shared_bytes](
            gpu.array(self.words["image"]), d, gpu.array(self.words["fragments"]), gpu.array(meta)
        )
        return d.numpy()

    def interpret(self) -> np.ndarray:
        """Registers of D as the interpreter leaves them."""
        memory = ReferenceMemory()
        arrays = [self.words["image"], self.words["accumulators"], self.words["fragments"],
                  self.words.get("meta", np.zeros(THREADS)).astype(np.uint32)]  # fmt: skip
        addresses = []
        for array in arrays:
            addresses.append(memory.allocate(array.nbytes))
            memory.write(addresses[-1], array.tobytes())
        module = parse_module(self.text(), "wgmma.ptx", check=True)
        run_kernel(module, "k", 1, THREADS, [struct.pack("<Q", a) for a in addresses], memory,
                   dynamic_shared=self.shared_bytes)  # fmt: skip
        size = self.words["accumulators"].nbytes
        return np.frombuffer(memory.read(addresses[1], size), np.uint32).reshape(self.registers, THREADS)


def k_major(rows: int, width: int, start: int = 0, along: int = 0, line: int = 0, gap: int = 0) -> Layout:
    """A K-major matrix whose groups of eight rows follow one another, `gap` bytes apart."""
    if width == 16:
        return Layout(16, "k", start, stride=128 + gap, leading=(128 + gap) * (rows // 8) + 64)
    return Layout(width, "k", start, stride=8 * width + gap, leading=16, along=along, line=line)


def mn_major(rows: int, width: int, start: int = 0, deep: int = 2, line: int = 0) -> Layout:
    """An MN-major matrix of 16-bit elements, `deep` groups of eight k."""
    if width == 16:
        return Layout(16, "mn", start, stride=128 * deep, leading=128)
    return Layout(width, "mn", start, stride=8 * width, leading=8 * width * deep, line=line)
