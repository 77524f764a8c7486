"""Two GPUs in one process."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from trt_runtime import Device, InputError, Session, pipeline

from ..conftest import open_engine
from ..models import Case, assert_matches, dynamic, reference, rng, several, static
from ..together import run_together

pytestmark = pytest.mark.gpu


@pytest.fixture
def both() -> Iterator[list[Device]]:
    with Device("cuda") as first:
        if first.platform.driver.device_count() < 2:
            pytest.skip("needs two GPUs")
        with Device("cuda:1") as second:
            assert second.ordinal == 1
            yield [first, second]


@pytest.mark.parametrize("case", [static(), dynamic(), several()], ids=lambda case: case.name)
def test_both_give_the_same_results(both: list[Device], case: Case) -> None:
    for device in both:
        with open_engine(device, case) as engine, Session(engine) as session:
            for feed in case.feeds:
                want = reference(case.model, feed)
                for _ in range(3):
                    assert_matches(session.infer(feed), want, case.tolerance)
                    (many,) = session.infer_many([feed])
                    assert_matches(many, want, case.tolerance)
                    assert_matches(session.infer_async(feed).result(), want, case.tolerance)


def test_threads_use_both_at_once(both: list[Device]) -> None:
    """Whichever context is current on a thread, an inference runs on its session's device."""
    case = dynamic()
    wants = [(feed, reference(case.model, feed)) for feed in case.feeds]
    with (
        open_engine(both[0], case) as one,
        open_engine(both[1], case) as other,
        Session(one, contexts=2) as first,
        Session(other, contexts=2) as second,
    ):

        def work(number: int) -> None:
            for turn in range(100):
                session = (first, second)[(number + turn) % 2]
                feed, want = wants[turn % len(wants)]
                assert_matches(session.infer(feed), want, case.tolerance)

        assert run_together(6, work) == []


def test_page_locked_memory_of_one_serves_the_other(
    both: list[Device], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "STAGED_BYTES", -1)  # it crosses from where it is
    case = static()
    (name,) = case.feeds[0]
    with (
        open_engine(both[0], case) as one,
        open_engine(both[1], case) as other,
        Session(one) as first,
        Session(other) as second,
    ):
        buffers = [session.input_buffers() for session in (first, second)]
        for seed in range(8):
            for given in buffers:
                given[name][...] = rng(seed).standard_normal(given[name].shape, np.float32)
                want = reference(case.model, given)
                for session in (first, second):
                    assert_matches(session.infer(given), want, case.tolerance)


def test_an_array_on_the_other_one_is_refused(both: list[Device]) -> None:
    case = static()
    (feed, *_) = case.feeds
    (name,) = feed
    with (
        open_engine(both[0], case) as one,
        open_engine(both[1], case) as other,
        Session(one) as first,
        Session(other) as second,
    ):
        (stays,) = first.infer(feed, outputs="device").values()
        assert stays.device.ordinal == 0
        (there,) = second.infer(feed, outputs="device").values()
        assert there.device.ordinal == 1
        np.testing.assert_array_equal(stays.copy_to_host(), there.copy_to_host())
        torch = pytest.importorskip("torch")
        on_second = torch.from_numpy(feed[name]).to("cuda:1")
        with pytest.raises(InputError, match=r"is on cuda:1 .*cuda:0"):
            first.infer(on_second)
        assert_matches(second.infer(on_second), reference(case.model, feed), case.tolerance)


def test_closing_one_leaves_the_other_working(both: list[Device]) -> None:
    case = static()
    (feed, *_) = case.feeds
    want = reference(case.model, feed)
    with open_engine(both[1], case) as other, Session(other) as second:
        assert_matches(second.infer(feed), want, case.tolerance)
        with open_engine(both[0], case) as one, Session(one) as first:
            assert_matches(first.infer(feed), want, case.tolerance)
        before = second.device.memory_info()
        assert_matches(second.infer(feed), want, case.tolerance)
        assert second.device.memory_info() == before
