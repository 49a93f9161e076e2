"""What reads documents that others wrote, and what writes JSON: bounds, kinds of file, numbers."""

import json
import math
import os

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
def test_what_is_no_plain_file_is_refused_at_once(tmp_path, kind):
    (tmp_path / "secret").write_text("{}")
    (tmp_path / "f").write_text("{}")
    put_in_place(tmp_path / "f", kind, tmp_path / "secret")
    with pytest.raises(DataError, match="f"):
        read_file(tmp_path / "f", limit=10, error=DataError)
    if kind == "pipe":
        # Where a person names a file, a link is theirs; a pipe is still none.
        (tmp_path / "to").symlink_to(tmp_path / "f")
        with pytest.raises(DataError, match="no plain file"):
            read_file(tmp_path / "to", limit=10, error=DataError, follow=True)


def test_a_device_is_refused():
    from pathlib import Path

    with pytest.raises(DataError, match="no plain file"):
        read_file(Path("/dev/zero"), limit=10, error=DataError)


def test_a_large_file_is_refused_with_its_size_and_the_bound(tmp_path):
    (tmp_path / "f").touch()
    os.truncate(tmp_path / "f", 1 << 40)
    with pytest.raises(DataError, match="1099511627776 bytes, more than 10"):
        read_file(tmp_path / "f", limit=10, error=DataError)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"a": NaN}', "NaN is no number"),
        ("[Infinity]", "Infinity is no number"),
        ("[1e999]", "beyond what a number can be"),
        ("[" + "9" * 5000 + "]", "5000 digits"),
        ("[" * 200_000, "nested too deep"),
        ('{"a": ', "JSON"),
        (b"\xff\xfe\x00", "JSON"),
    ],
)
def test_json_that_is_none_is_refused_with_the_reason(text, why):
    with pytest.raises(DataError, match=why):
        parse_json(text, "x.json", error=DataError)


@pytest.mark.parametrize("text", ['{"depth": 10000000}', '{"depth": "many"}', "[]", "", '{"depth": ' + "[" * 9000])
def test_a_field_beyond_its_bound_is_refused_in_one_line(text):
    with pytest.raises(DataError) as caught:
        parse_model(Wanted, text, "state.json", error=DataError)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    if "10000000" in text:
        assert "state.json: depth 10000000: input should be less than or equal to 10" in str(caught.value)


@pytest.mark.parametrize("value", [0.9, 0.1, 1 / 3, 1e-8, 123456.78, 3.4e38])
def test_a_number_of_32_bits_is_written_as_a_person_would(value):
    held = float(np.float32(value))
    written = json.loads(json_text({"x": [held]}))["x"][0]
    assert np.float32(written) == np.float32(value)
    assert len(repr(written)) <= len(repr(held))
    assert json_text(float(np.float32(0.9))) == "0.9"


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_other_numbers_stay_as_they_are(value):
    written = json.loads(json_text(value))
    assert written == value or np.float32(written) == np.float32(value) == value


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_say_is_not_written_and_named(value):
    with pytest.raises(DataError, match=r"views\[1\].top1 is -?(nan|inf)"):
        json_text({"views": [{}, {"top1": value}]})
