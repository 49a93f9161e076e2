"""Read pickles of plain data: numbers, texts, lists, dictionaries and NumPy arrays. They run no code, and take no more memory than
a small multiple of their size.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from typing import Any

import numpy as np

NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")


def load_plain(data: bytes) -> Any:
    """Return the content of a pickle. Raises UnpicklingError: other than plain data. Other errors of any kind: it is damaged."""
    count = 0
    for opcode, argument, _ in pickletools.genops(data):
        remembers = opcode.name in ("PUT", "BINPUT", "LONG_BINPUT")
        # Python makes a table up to the highest number of a remembered object.
        if remembers and int(argument or 0) > count:
            raise pickle.UnpicklingError(f"it remembers object {argument} of {count}")
        count += remembers or opcode.name == "MEMOIZE"
    return _PlainUnpickler(io.BytesIO(data)).load()


class _PlainUnpickler(pickle.Unpickler):
    """Reader of the names in NumPy's own pickles. Any other could run code, and NumPy's functions could take any memory."""

    def find_class(self, module: str, name: str) -> Any:
        plain: dict[tuple[str, str], Any] = {("numpy", "dtype"): np.dtype, ("_codecs", "encode"): _encode}
        plain |= {(one, "_reconstruct"): _empty_array for one in NUMPY} | {(one, "scalar"): _scalar for one in NUMPY}
        if (module, name) == ("numpy", "ndarray"):
            return "ndarray"  # only as an argument of _reconstruct
        if (module, name) not in plain:
            raise pickle.UnpicklingError(f"it contains {module}.{name}, which is not plain data")
        return plain[module, name]


def _empty_array(kind: object, shape: object, _: object) -> np.ndarray:
    # NumPy pickles an array as an empty one, and then its state, whose bytes must fit its shape.
    if kind != "ndarray" or shape != (0,):
        raise pickle.UnpicklingError("it contains an array that is not made of its own bytes")
    return np.empty(0, "b")


def _scalar(dtype: Any, data: object = None) -> Any:
    if not isinstance(data, bytes) or dtype.itemsize != len(data):
        raise pickle.UnpicklingError("it contains a number that is not made of its own bytes")
    return np.frombuffer(data, dtype)[0]


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it contains text in {encoding}")
    return text.encode("latin1")
