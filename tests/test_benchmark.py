"""Measuring: what a benchmark, a timeline and a profile say, and that they leave nothing behind."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import python_time, summarize
from benchmarks.models import yolov3
from benchmarks.on_host import HostDriverApi
from benchmarks.raw import Lane, RawEngine, back_to_back, in_turns
from trt_runtime import ClosedError, Device, InputError, Profile, Session, ShapeError
from trt_runtime.benchmark import BenchmarkReport, Distribution
from trt_runtime.pictures import plot_benchmark, plot_profile, plot_timeline
from trt_runtime.platform import HostPlatform
from trt_runtime.staged import StagedInference
from trt_runtime.timeline import STAGES, Timeline, record_timeline

from .conftest import open_engine
from .models import Case, dynamic, expand, nonzero, reshape, several, static

QUICK = {"warm_up_ms": 0, "duration_s": 0.01}


def session_of(device: Device, case: Case, **settings: Any) -> Session:
    return Session(case.model, profiles=case.profiles, device=device, cache=False, **settings)


@pytest.fixture
def report(host: Device) -> BenchmarkReport:
    with session_of(host, static()) as session:
        return session.benchmark(**QUICK)


# The benchmark ----------------------------------------------------------------------------------


def test_latency_is_the_sum_of_its_parts(report: BenchmarkReport) -> None:
    parts = (report.h2d, report.compute, report.d2h)
    sums = [sum(each) for each in zip(*(part.samples for part in parts), strict=True)]
    assert report.latency.samples == pytest.approx(sums)
    assert report.enqueue.count == report.latency.count >= 5


def test_the_distance_from_the_floor_is_the_ratio_of_medians(report: BenchmarkReport) -> None:
    assert report.floor is not None
    assert report.of_floor == pytest.approx(
        (
            report.infer.median / report.floor.median,
            report.infer_page_locked.median / report.floor.median,
        )
    )


def test_percentiles_are_of_the_samples() -> None:
    figures = Distribution.of(list(range(101)))
    assert (figures.median, figures.p90, figures.p95, figures.p99) == (50, 90, 95, 99)
    assert (figures.count, figures.minimum, figures.maximum, figures.mean) == (101, 0, 100, 50)
    assert "samples" not in figures.to_json()


def test_a_report_is_json_and_text(report: BenchmarkReport) -> None:
    content = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert content["ms"]["compute"]["median"] == report.compute.median
    assert content["shapes"] == {"x": [1, 3, 8, 8]}
    assert content["throughput_inferences_per_s"] > 0
    text = str(report)
    for name, _ in report.rows:
        assert name in text
    assert "inferences/s with 1 context," in text


def test_timings_of_the_host_device_say_that_they_mean_nothing(report: BenchmarkReport) -> None:
    assert not report.on_gpu
    assert report.to_json()["timings_are_of_a_gpu"] is False
    assert "say nothing about a GPU" in str(report)


@pytest.mark.parametrize("make", [several, dynamic, reshape, expand, nonzero])
@pytest.mark.parametrize("contexts", [1, 2])
def test_measuring_leaves_a_session_as_it_was(device: Device, make: Any, contexts: int) -> None:
    """And, as the ledger of the host device shows, nothing of its own."""
    case = make()
    with open_engine(device, case) as engine, Session(engine, contexts=contexts) as session:
        kept = [session.infer(feed) for feed in case.feeds]
        before = [{name: array.copy() for name, array in result.items()} for result in kept]
        session.benchmark(case.feeds[0], **QUICK)
        record_timeline(session, case.feeds[0], inferences=2)
        if make in (several, dynamic):  # the others may be nothing that a profiler is told of
            session.profile(case.feeds[0], runs=1)
        for feed, held, was in zip(case.feeds, kept, before, strict=True):
            after = session.infer(feed)
            for name, array in was.items():
                np.testing.assert_array_equal(held[name], array)
                np.testing.assert_array_equal(after[name], array)


def test_random_inputs_have_the_shapes_that_the_first_profile_is_best_at(host: Device) -> None:
    with session_of(host, dynamic()) as session:
        assert session.benchmark(**QUICK).shapes == {"x": (2, 3, 8, 8)}
        wanted = {"x": (16, 3, 8, 8)}
        assert session.benchmark(shapes=wanted, **QUICK).shapes == wanted
        given = np.zeros((5, 3, 8, 8), np.float32)
        assert session.benchmark(given, **QUICK).shapes == {"x": (5, 3, 8, 8)}


def test_inputs_are_checked_as_those_of_infer_are(host: Device) -> None:
    with session_of(host, dynamic()) as session:
        with pytest.raises(ShapeError):
            session.benchmark(np.zeros((1, 3, 8, 9), np.float32))
        with pytest.raises(InputError, match="there is no input 'z'"):
            session.profile(shapes={"z": (1,)})
        with pytest.raises(InputError, match="have their own"):
            session.benchmark(np.zeros((1, 3, 8, 8), np.float32), shapes={"x": (1, 3, 8, 8)})


@pytest.mark.parametrize("wrong", [{"duration_s": 0}, {"warm_up_ms": -1}])
def test_a_time_that_is_none_is_refused(host: Device, wrong: dict[str, float]) -> None:
    with session_of(host, static()) as session, pytest.raises(InputError, match="duration_s"):
        session.benchmark(**wrong)


def test_what_cannot_be_a_graph_has_no_floor_and_says_why(host: Device) -> None:
    with session_of(host, nonzero()) as session:
        report = session.benchmark(**QUICK)
    assert report.floor is None
    assert report.of_floor is None
    assert "depend on the data" in str(report)
    assert report.to_json()["ms"]["floor"] is None


def test_a_session_without_graphs_is_measured_without_them(host: Device) -> None:
    with session_of(host, static(), graphs=False) as session:
        report = session.benchmark(**QUICK)
    assert report.graph_fallback == "graphs=False was given"
    assert report.floor is not None


def test_a_closed_session_is_not_measured(host: Device) -> None:
    session = session_of(host, static())
    session.close()
    for call in (session.benchmark, session.profile, lambda: record_timeline(session)):
        with pytest.raises(ClosedError):
            call()


# The timeline -----------------------------------------------------------------------------------


@pytest.fixture(params=[1, 2])
def timeline(host: Device, request: pytest.FixtureRequest) -> Timeline:
    with session_of(host, static(), contexts=request.param) as session:
        recorded = record_timeline(session, inferences=7)
    assert {span.context for span in recorded.spans} == set(range(request.param))
    return recorded


def test_every_inference_has_its_three_steps_in_order(timeline: Timeline) -> None:
    for inference in range(7):
        spans = [span for span in timeline.spans if span.inference == inference]
        assert [span.stage for span in spans] == list(STAGES)
        ends = [time for span in spans for time in (span.start_ms, span.end_ms)]
        assert ends == sorted(ends)
    assert min(span.start_ms for span in timeline.spans) == 0


def test_a_context_computes_one_inference_at_a_time(timeline: Timeline) -> None:
    for context in {span.context for span in timeline.spans}:
        computes = sorted(
            (span.start_ms, span.end_ms)
            for span in timeline.spans
            if span.context == context and span.stage == "GPU compute"
        )
        for (_, end), (start, _) in pairwise(computes):
            assert end <= start


def test_a_compute_waits_for_the_one_before_it_on_its_context(
    host: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host device runs one stream at a time, so its spans alone would not show it."""
    run, order = StagedInference.run, []

    def spy(self: StagedInference, after: StagedInference | None = None) -> float:
        order.append((self, after))
        return run(self, after)

    with session_of(host, static(), contexts=2) as session:
        monkeypatch.setattr(StagedInference, "run", spy)
        record_timeline(session, inferences=8)
    flights = [(each, after) for each, after in order if after is not None]
    assert len(flights) == 2 * 8 - 2  # all but the first of each context
    for each, after in flights:
        assert after.context is each.context
    last = {context: None for context in {each.context for each, _ in flights}}
    for each, after in order[-16:]:
        assert after is last[each.context]
        last[each.context] = each


def test_the_trace_is_what_chrome_reads(timeline: Timeline, tmp_path: Path) -> None:
    timeline.save(tmp_path / "trace.json")
    trace = json.loads((tmp_path / "trace.json").read_text())
    complete = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert len(complete) == len(timeline.spans) == 21
    named = {
        (event["pid"], event["tid"])
        for event in trace["traceEvents"]
        if event["name"] == "thread_name"
    }
    for event, span in zip(complete, timeline.spans, strict=True):
        assert (event["pid"], event["tid"]) in named
        assert event["ts"] == pytest.approx(span.start_ms * 1000)
        assert event["dur"] == pytest.approx((span.end_ms - span.start_ms) * 1000)
        assert event["args"] == {"inference": span.inference}


# The profile ------------------------------------------------------------------------------------


def test_a_profile_has_every_layer_and_its_share(host: Device) -> None:
    with session_of(host, several()) as session:
        profile = session.profile(runs=3)
    assert len(profile.layers) == 3
    assert sum(layer.share for layer in profile.layers) == pytest.approx(1)
    assert sum(layer.ms for layer in profile.layers) == pytest.approx(profile.total_ms)
    slowest = profile.slowest(2)
    assert len(slowest) == 2
    assert slowest[0].ms >= slowest[1].ms
    assert json.loads(json.dumps(profile.to_json()))["runs"] == 3
    assert slowest[0].name in str(profile)


# Pictures ---------------------------------------------------------------------------------------


def test_pictures_are_files_of_the_kind_that_their_name_says(
    host: Device, report: BenchmarkReport, tmp_path: Path
) -> None:
    with session_of(host, static()) as session:
        timeline, profile = record_timeline(session, inferences=2), session.profile(runs=1)
    for suffix, beginning in ((".png", b"\x89PNG"), (".svg", b"<?xml")):
        for name, draw in {
            "benchmark": lambda path: plot_benchmark(report, timeline, path),
            "alone": lambda path: plot_benchmark(report, None, path),
            "timeline": lambda path: plot_timeline(timeline, path),
            "profile": lambda path: plot_profile(profile, path),
        }.items():
            path = tmp_path / f"{name}{suffix}"
            draw(path)
            assert path.read_bytes().startswith(beginning)
    with pytest.raises(InputError, match="cannot be written"):
        plot_profile(profile, tmp_path / "picture.unknown")


def test_without_matplotlib_a_picture_says_how_to_get_it(
    report: BenchmarkReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r"pip install 'trt-runtime\[plot\]'"):
        plot_benchmark(report, None, tmp_path / "picture.png")


# What the benchmarks of this project are made of ------------------------------------------------


def test_loops_by_hand_give_what_a_session_gives(platform: HostPlatform) -> None:
    case = dynamic()
    with Device(platform) as device, session_of(device, case) as session:
        raw = RawEngine(
            HostDriverApi(platform), device.platform.tensorrt().module, session.engine.serialize()
        )
        shape = (2, 3, 8, 8)
        lanes = [Lane(raw, {"x": shape}) for _ in range(2)]
        for seed, loop in enumerate(("floor", "pinned", "copies", "pageable_loop", "sample")):
            image = np.random.default_rng(seed).random(shape, np.float32)
            want = session.infer(image)["y"]
            lane = lanes[0]
            if loop in ("floor", "pinned"):
                lane.fill(image)
                getattr(lane, loop)()
                got = lane.results()["y"]
            elif loop == "sample":
                got = lane.sample(image)[0].reshape(want.shape)
            else:
                got = getattr(lane, loop)(image)["y"]
            np.testing.assert_array_equal(got, want)
        for lane in lanes:
            lane.fill(image)
        in_turns(lanes, 5)
        back_to_back(lanes[0], 3)
        for lane in lanes:
            np.testing.assert_array_equal(lane.results()["y"], want)
            lane.close()
        raw.close()


def test_the_generated_yolov3_is_yolov3(host: Device) -> None:
    model = yolov3("batch", side=64)
    weights = sum(int(np.prod(weight.dims)) for weight in model.graph.initializer)
    convolutions = sum(node.op_type == "Conv" for node in model.graph.node)
    # yolov3.weights of Darknet has 62,001,757; batch normalisation is folded into biases here.
    assert convolutions == 75
    scales = 2 * 4  # of the two upsampling layers
    assert weights - scales == 62_001_757 - 3 * 26_304
    profile = Profile({"000_net": (2, 3, 64, 64)})
    with session_of(host, Case("yolov3", model, (), (profile,))) as session:
        image = np.random.default_rng(0).random((2, 3, 64, 64), np.float32)
        results = session.infer(image)
    assert {name: array.shape for name, array in results.items()} == {
        "082_convolutional": (2, 255, 2, 2),
        "094_convolutional": (2, 255, 4, 4),
        "106_convolutional": (2, 255, 8, 8),
    }
    for array in results.values():
        assert np.abs(array).max() < 1000  # far from float16's limit
        assert np.abs(array[0] - array[1]).max() > 0.01


def test_the_summary_compares_with_the_floor_and_with_loops_by_hand(tmp_path: Path) -> None:
    def entry(
        group: str, way: str, contexts: int, inferences: int, median: float, **beside: float
    ) -> Any:
        told = {"model": "m", "way": way, "contexts": contexts, "batch": 2, "beside": beside}
        return {
            "group": group,
            "extra_info": {**told, "inferences": inferences},
            "stats": {"median": median, "min": median},
        }

    content = {
        "machine_info": {"python_version": "3.10", "gpu": "a GPU", "optimization_level": 1},
        "benchmarks": [
            entry("latency", summarize.FLOOR, 1, 1, 0.001, **{summarize.FLOOR: 0.001}),
            entry("latency", "infer", 1, 1, 0.003, **{summarize.FLOOR: 0.002}),
            entry("throughput", summarize.COMPUTE, 1, 100, 0.1),
            entry("throughput", summarize.IN_TURNS, 2, 100, 0.08),
            entry(
                "throughput",
                summarize.MANY,
                1,
                100,
                0.125,
                **{summarize.COMPUTE: 0.15, summarize.IN_TURNS: 0.25},
            ),
            entry("throughput", summarize.MANY, 2, 100, 0.1, **{summarize.IN_TURNS: 0.09}),
        ],
    }
    path = tmp_path / "run.json"
    path.write_text(json.dumps(content))
    summarize.main(str(path), str(tmp_path / "results"))
    text = (tmp_path / "results" / "run.md").read_text()
    assert "| infer | 1.500 | 1000.0 | 3.0000 | 2.0000 | 3.0000 |" in text
    assert "| infer_many, input page-locked | 1,600 | 2,000 |" in text
    assert "one context, to `raw graphs, compute alone` beside it: 1.200" in text
    assert "to the best `raw graphs in turns` beside it: 0.900; 1: 2.000, 2: 0.900." in text
    for name in ("run-m-latency.svg", "run-m-throughput.svg"):
        assert name in text
        assert (tmp_path / "results" / name).read_text().startswith("<svg")


def test_the_time_of_python_alone_can_be_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["python_time.py", "--calls", "10"])
    python_time.main()
    assert "µs median of 7 rounds of 10 calls" in capsys.readouterr().out
