"""Compile Triton's loops for GPUs that need not be here. Stdin has a line of JSON for each case, the arguments of
:func:`kernels_of`; stdout gets a line for each.
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


def kernels_of(arch, dtype, state, flags, ones):
    """Compile them all. ``ones``: names of sizes that are 1."""
    step = {"N": state, "BD": triton_scan.BLOCK, "REVERSE": flags, "T": triton_scan.STEP}
    options = {"SEGMENTS": flags, "Q": 32}
    kernels = {
        "segment_ends": step,
        "scan_forward": step | options | {"SAVE": flags},
        "segment_heads": step,
        "scan_backward": step | options | {"T": triton_scan.STEP_BACK},
    }
    constant = dict.fromkeys(ones, 1)
    return {name: build(getattr(triton_kernels, name), tiles, dtype, arch, constant) for name, tiles in kernels.items()}


def build(kernel, constants, dtype, arch, constant):
    """Compile as a launch would: aligned pointers, and widths that 16 divides."""
    constants = constants | {name: value for name, value in constant.items() if name in kernel.arg_names}
    halves = ("u", "dt", "B", "C", "z", "y_BLD", "grad_BLD", "du", "ddt", "dz")
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
    made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": 1})
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


for line in sys.stdin:
    json.dump(kernels_of(**json.loads(line)), sys.stdout)
    print(flush=True)
