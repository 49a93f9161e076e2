"""Compile Triton's loops for cards that need not be here. A line of JSON from stdin a case, as :func:`kernels_of` takes it; out
comes a line each.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dtsf.model.scan import triton_kernels, triton_scan


def main():
    for line in sys.stdin:
        json.dump(kernels_of(**json.loads(line)), sys.stdout)
        print(flush=True)


def kernels_of(arch, dtype, state, flags, ones):
    """Compile them all. ``ones``: names of sizes that are 1."""
    tiles = {"N": state, "BD": triton_scan.BLOCK, "REVERSE": flags, "HAS_BIAS": flags}
    options = {"HAS_SKIP": flags, "HAS_Z": flags, "SEGMENTS": flags}
    step, back = {"T": triton_scan.STEP}, {"T": triton_scan.STEP_BACK}
    kernels = {
        "segment_ends": (triton_kernels.segment_ends, tiles | step, 1),
        "scan_forward": (triton_kernels.scan_forward, tiles | step | options | {"Q": 32, "SAVE": flags}, 1),
        "segment_heads": (triton_kernels.segment_heads, tiles | step | {"HAS_Z": flags}, 1),
        "scan_backward": (triton_kernels.scan_backward, tiles | back | options | {"Q": 32}, 1),
    }
    constant = dict.fromkeys(ones, 1)
    return {name: build(*kernel, dtype, arch, constant) for name, kernel in kernels.items()}


def build(kernel, constants, warps, dtype, arch, constant):
    """Compile as a launch would: aligned pointers, widths that 16 divides, and what is left out as None."""
    left_out = {"bias_D": "HAS_BIAS", "skip_D": "HAS_SKIP"}
    constants = constants | {name: value for name, value in constant.items() if name in kernel.arg_names}
    constants |= {name: None for name, flag in left_out.items() if name in kernel.arg_names and not constants.get(flag, True)}
    halves = ("u", "dt", "B", "C", "z", "y_BLD", "grad_BLD", "du", "ddt", "dz", "x", "grad", "dx_BLD")
    signature, attributes = {}, {}
    for k, parameter in enumerate(kernel.params):
        name = parameter.name
        if name in constants:
            signature[name] = "constexpr"
        elif name in ("L", "D", "segment") or re.fullmatch(r".+_[bl]", name):
            signature[name] = "i32"
        else:
            signature[name] = f"*{dtype}" if name in halves else "*fp32"
        if name not in constants and name != "L" and not parameter.do_not_specialize:
            attributes[(k,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes)
    made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": warps})
    return {"ptx": made.asm["ptx"], "shared": made.metadata.shared, **resources(made.asm["cubin"])}


def resources(cubin):
    """Registers of a lane and the bytes that it spills, by NVIDIA's own tool, which comes with Triton; 0 where it does not."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    if not tool.exists():
        return {"registers": 0, "stack": 0}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    registers, stack = re.findall(r"REG:(\d+) STACK:(\d+)", said.stdout)[-1]
    return {"registers": int(registers), "stack": int(stack)}


if __name__ == "__main__":
    main()
