"""Where an array is, by NumPy's ABI."""

from __future__ import annotations

from unittest import mock

import numpy as np

from trt_runtime import memory


def test_the_address_is_the_one_that_numpy_tells() -> None:
    base = np.arange(60.0).reshape(3, 4, 5)
    arrays = [base, base[1], base[::-1], base.T, base[:, 2:, 1], base[:0], np.empty(0), np.array(3)]
    arrays += [np.frombuffer(b"read only", np.uint8), base.astype(">f4"), base.view(np.recarray)]
    for find in (memory.address_of, memory._field_behind_head, memory._interface_address):
        for array in arrays:
            assert find(array) == array.__array_interface__["data"][0]


def test_where_the_field_is_elsewhere_numpy_is_asked() -> None:
    assert memory._is_behind_head()
    with mock.patch.object(memory, "_field_behind_head", return_value=8):
        assert not memory._is_behind_head()
    pypy = mock.Mock()
    pypy.name = "pypy"
    with (
        mock.patch.object(memory.sys, "implementation", pypy),
        mock.patch.object(memory, "_field_behind_head", side_effect=AssertionError),
    ):
        assert not memory._is_behind_head()
