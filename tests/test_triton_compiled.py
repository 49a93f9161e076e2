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
ALL = ["segment_ends", "scan_forward", "segment_heads", "scan_backward"]


def case(*, arch=90, dtype="bf16", state=16, flags=True, ones=()):
    return {"arch": arch, "dtype": dtype, "state": state, "flags": flags, "ones": ones}


def compiled(*cases):
    """What a process without the interpreter made: for each case and kernel its PTX, registers, spills and shared memory."""
    asked = "".join(json.dumps(one) + "\n" for one in cases)
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, str(COMPILER)], input=asked, capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    made = [json.loads(line) for line in done.stdout.splitlines()]
    assert [sorted(kernels) for kernels in made] == [sorted(ALL)] * len(cases)
    return made


def test_kernels__compile_for_an_h100_without_spills_or_atomics():
    (found,) = compiled(case())
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
def test_kernels__compile_for_other_gpus(arch):
    """In every precision that the card has."""
    cases = [
        case(arch=arch, dtype="fp16" if arch < 80 and dtype == "bf16" else dtype, state=state, flags=flags)
        for dtype, state, flags in CASES
    ]
    for one, made in zip(cases, compiled(*cases), strict=True):
        for name, facts in made.items():
            assert facts["stack"] == 0, f"{name} spills registers: {one}"


@pytest.mark.slow
def test_kernels__compile_where_a_size_is_one():
    """Which a launch makes a constant of."""
    compiled(*(case(ones=ones.split(",")) for ones in ("L", "D", "L,D,u_l,z_l,x_l,grad_l,dt_l")))
