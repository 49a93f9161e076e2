"""Bounded reading of files and JSON, and writing of JSON."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hostile import put_in_place
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from dtsf.errors import DataError
from dtsf.files.read import json_text, parse_json, parse_model, read_file


class Wanted(BaseModel):
    depth: int = Field(le=10)


@pytest.mark.parametrize("kind", ["pipe", "folder", "link", "loop", "nothing"])
def test_read_file__refuses_special_files_at_once(tmp_path, kind):
    (tmp_path / "secret").write_text("{}")
    (tmp_path / "f").write_text("{}")
    put_in_place(tmp_path / "f", kind, tmp_path / "secret")
    with pytest.raises(DataError, match="f"):
        read_file(tmp_path / "f", limit=10, error=DataError)
    if kind == "pipe":
        # ``follow`` accepts a link, but not a pipe.
        (tmp_path / "to").symlink_to(tmp_path / "f")
        with pytest.raises(DataError, match="not a regular file"):
            read_file(tmp_path / "to", limit=10, error=DataError, follow=True)


def test_read_file__refuses_devices_and_large_files(tmp_path):
    (tmp_path / "f").touch()
    os.truncate(tmp_path / "f", 1 << 40)
    large = "1099511627776 bytes, more than the limit of 10"
    for path, why in ((Path("/dev/zero"), "not a regular file"), (tmp_path / "f", large)):
        with pytest.raises(DataError, match=why):
            read_file(path, limit=10, error=DataError)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"a": NaN}', "NaN is not a JSON number"),
        ("[Infinity]", "Infinity is not a JSON number"),
        ("[1e999]", "is out of range"),
        ("[" + "9" * 5000 + "]", "5000 digits"),
        ("[" * 200_000, "nested too deep"),
        ('{"a": ', "JSON"),
        (b"\xff\xfe\x00", "JSON"),
    ],
)
def test_parse_json__names_the_reason(text, why):
    with pytest.raises(DataError, match=why):
        parse_json(text, "x.json", error=DataError)


@pytest.mark.parametrize("text", ['{"depth": 10000000}', '{"depth": "many"}', "[]", "", '{"depth": ' + "[" * 9000])
def test_parse_model__refuses_in_one_line(text):
    with pytest.raises(DataError) as caught:
        parse_model(Wanted, text, "state.json", error=DataError)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    if "10000000" in text:
        assert "state.json: depth 10000000: input should be less than or equal to 10" in str(caught.value)


@pytest.mark.parametrize("value", [0.9, 0.1, 1 / 3, 1e-8, 123456.78, 3.4e38])
def test_json_text__writes_32_bit_numbers_short(value):
    held = float(np.float32(value))
    written = json.loads(json_text({"x": [held]}))["x"][0]
    assert np.float32(written) == np.float32(value)
    assert len(repr(written)) <= len(repr(held))
    assert json_text(float(np.float32(0.9))) == "0.9"


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_json_text__keeps_other_numbers(value):
    written = json.loads(json_text(value))
    assert written == value or np.float32(written) == np.float32(value) == value


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_json_text__names_a_number_that_is_not_finite(value):
    with pytest.raises(DataError, match=r"views\[1\].top1 is -?(nan|inf)"):
        json_text({"views": [{}, {"top1": value}]})
