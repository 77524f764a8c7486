"""Where an array is, by NumPy's ABI."""

from __future__ import annotations

from unittest import mock

import numpy as np

from trt_runtime.platform import driver


def test_the_address_is_the_one_that_numpy_tells() -> None:
    base = np.arange(60.0).reshape(3, 4, 5)
    arrays = [base, base[1], base[::-1], base.T, base[:, 2:, 1], base[:0], np.empty(0), np.array(3)]
    arrays += [np.frombuffer(b"read only", np.uint8), base.astype(">f4"), base.view(np.recarray)]
    for find in (driver.address_of, driver._field_behind_head, driver._interface_address):
        for array in arrays:
            assert find(array) == array.__array_interface__["data"][0]


def test_where_the_field_is_elsewhere_numpy_is_asked() -> None:
    assert driver._is_behind_head()
    with mock.patch.object(driver, "_field_behind_head", return_value=8):
        assert not driver._is_behind_head()
    pypy = mock.Mock()
    pypy.name = "pypy"
    with (
        mock.patch.object(driver.sys, "implementation", pypy),
        mock.patch.object(driver, "_field_behind_head", side_effect=AssertionError),
    ):
        assert not driver._is_behind_head()
