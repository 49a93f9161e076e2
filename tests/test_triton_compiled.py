"""Triton's loops are compiled to machine code for cards that are not here: the interpreter accepts what a compiler refuses."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

if not os.environ.get("CI"):
    pytest.importorskip("triton", reason="pip install --no-deps triton==3.6.0")

COMPILER = Path(__file__).with_name("triton_compiler.py")
ALL = ["segment_ends", "scan_forward", "segment_heads", "scan_backward", "conv_forward", "conv_backward"]


def compiled(*, arch=90, dtype="bf16", state=16, flags=True, kernels=ALL):
    """What a process without the interpreter made: for each kernel its PTX's instructions, registers and spills."""
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    words = [str(arch), dtype, str(state), str(int(flags)), ",".join(kernels)]
    done = subprocess.run(
        [sys.executable, str(COMPILER), *words], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_all_loops_compile_for_a_h100_without_spills_or_atomics():
    found = compiled()
    assert sorted(found) == sorted(ALL)
    for name, facts in found.items():
        assert facts["stack"] == 0, f"{name} spills registers"
        # A sum by atomics has another order every time.
        assert not re.search(r"\b(atom|red)\.", facts["ptx"]), name
    # A lane a channel: the sum over the states needs no other lane, and no tile goes through shared memory.
    assert "shfl" not in found["scan_forward"]["ptx"]
    assert found["scan_forward"]["shared"] == found["segment_ends"]["shared"] == found["segment_heads"]["shared"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("arch", [75, 80, 89, 90, 100])
@pytest.mark.parametrize(("dtype", "state", "flags"), [("fp32", 16, True), ("fp16", 8, False)])
def test_all_loops_compile_for_other_cards(arch, dtype, state, flags):
    for facts in compiled(arch=arch, dtype=dtype, state=state, flags=flags).values():
        assert facts["stack"] == 0
