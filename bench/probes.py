"""What engine.py measures in a process of its own: `python bench/probes.py NAME [ARGUMENTS]` prints one JSON object.

    import                      seconds that `import weft` takes
    compile FILE KERNEL         seconds from PTX text to the end of the first launch of KERNEL, once LLVM is loaded
    memory                      bytes of the process's peak resident set beyond the arrays it holds
    simulator                   seconds per launch of each job of SIMULATED in Numba's CUDA simulator
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.append(sys.path.pop(0))  # this folder last: files in it have the names of PyTorch and Triton

KERNELS = Path(__file__).parent / "kernels"
CHIP = "a100"

# Jobs small enough for the simulator: saxpy and reduction over this many floats, sgemm of this order.
SUMS_A_BLOCK = 256 * 32  # elements that a block of kernels/reduce.cu adds up
SIMULATED = {"saxpy": 4096, "block reduction": 4096, "sgemm, 32x32 tiles": 64}

WARM_UP_PTX = """
.version 7.0
.target sm_70
.address_size 64
.visible .entry warm_up(.param .u64 warm_up_param_0)
{
    .reg .b64 %rd<3>;
    .reg .b32 %r<2>;
    ld.param.u64 %rd1, [warm_up_param_0];
    cvta.to.global.u64 %rd2, %rd1;
    mov.u32 %r1, 7;
    st.global.u32 [%rd2], %r1;
    ret;
}
"""


def probe_import() -> dict[str, float]:
    start = time.perf_counter()
    import weft

    seconds = time.perf_counter() - start
    assert weft.__name__ == "weft"
    return {"seconds": seconds}


def probe_compile(file: str, kernel: str) -> dict[str, float]:
    """Every parameter of the kernel must be one pointer to floats."""
    import numpy as np

    import weft

    gpu = weft.Device(CHIP)
    ptx = Path(file).read_text()
    memory = gpu.zeros(4096, np.float32)
    gpu.load(WARM_UP_PTX)["warm_up"][1, 32](memory)
    start = time.perf_counter()
    gpu.load(ptx)[kernel][1, 128](memory)
    return {"seconds": time.perf_counter() - start}


def probe_memory() -> dict[str, int]:
    """saxpy, reduction and sgemm on arrays of 16 M floats and 1024 x 1024, compiled from CUDA C++."""
    import numpy as np

    import weft

    gpu = weft.Device(CHIP)
    n, order = 1 << 24, 1024
    host = np.ones(n, np.float32)
    x, y = gpu.array(host), gpu.array(host)
    a, b, c = (gpu.zeros((order, order), np.float32) for _ in range(3))
    sums = gpu.zeros(-(-n // SUMS_A_BLOCK), np.float32)
    gpu.compile(KERNELS / "saxpy.cu")["saxpy"][n // 256, 256](n, 2.0, x, y)
    gpu.compile(KERNELS / "reduce.cu")["block_sum"][-(-n // SUMS_A_BLOCK), 256](n, y, sums)
    gpu.compile(KERNELS / "sgemm.cu")["sgemm_8x8"][(8, 8), (16, 16)](order, a, b, c)
    # Not getrusage: its peak outlives exec, so it would be that of the program that started this one.
    status = Path("/proc/self/status").read_text()
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024
    arrays = host.nbytes + sum(array.nbytes for array in (x, y, a, b, c, sums))
    return {"bytes": peak - arrays}


def probe_simulator() -> dict[str, float]:
    """NUMBA_ENABLE_CUDASIM=1 must be set."""
    import numpy as np
    from simulated import block_sum, saxpy, sgemm_tile32

    n = SIMULATED["saxpy"]
    x, y = np.ones(n, np.float32), np.ones(n, np.float32)
    sums = np.zeros(n // 512, np.float32)
    order = SIMULATED["sgemm, 32x32 tiles"]
    a = np.ones((order, order), np.float32)
    c = np.zeros_like(a)
    blocks = (order // 32, order // 32)
    launches: dict[str, Callable[[], object]] = {
        "saxpy": lambda: saxpy[n // 256, 256](n, np.float32(2), x, y),
        "block reduction": lambda: block_sum[n // 512, 256](n, x, sums),
        "sgemm, 32x32 tiles": lambda: sgemm_tile32[blocks, (32, 32)](order, a, a, c),
    }
    seconds = {}
    for name, launch in launches.items():
        start = time.perf_counter()
        launch()
        seconds[name] = time.perf_counter() - start
    assert y[0] == 3 and sums[0] == 512 and c[0, 0] == order
    return seconds


PROBES: dict[str, Callable[..., dict]] = {
    "import": probe_import,
    "compile": probe_compile,
    "memory": probe_memory,
    "simulator": probe_simulator,
}

if __name__ == "__main__":
    print(json.dumps(PROBES[sys.argv[1]](*sys.argv[2:])))
