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


def compiled(*, arch=90, dtype="bf16", state=16, flags=True, ones=""):
    """What a process without the interpreter made: for each kernel its PTX, registers, spills and shared memory."""
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    words = [str(arch), dtype, str(state), str(int(flags)), ones]
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
    # A lane a channel: the sum over the states needs no other lane. Only what is kept is turned, once a chunk or segment.
    assert "shfl" not in found["scan_forward"]["ptx"]
    assert found["scan_forward"]["shared"] == found["segment_heads"]["shared"] == 4 * 16 * 32
    assert found["segment_ends"]["shared"] == 0
    # Ten warps of a processor's 65,536 registers, which are given out eight to a lane.
    assert found["scan_backward"]["registers"] <= 200


CASES = [("fp32", 16, True), ("bf16", 16, True), ("bf16", 8, True), ("fp16", 8, False)]


@pytest.mark.slow
@pytest.mark.parametrize("arch", [75, 80, 86, 89, 90, 100])
@pytest.mark.parametrize(("dtype", "state", "flags"), CASES)
def test_all_loops_compile_for_other_cards(arch, dtype, state, flags):
    if arch < 80 and dtype == "bf16":
        dtype = "fp16"
    for name, facts in compiled(arch=arch, dtype=dtype, state=state, flags=flags).items():
        assert facts["stack"] == 0, name


@pytest.mark.slow
@pytest.mark.parametrize("ones", ["L", "D", "L,D,u_l,z_l,x_l,grad_l,dt_l"])
def test_all_loops_compile_where_a_size_is_one(ones):
    """Which a launch makes a constant of."""
    assert sorted(compiled(ones=ones)) == sorted(ALL)
