"""The benchmark on tiny settings: it reports what it should, its limits are judged right, its counts are true."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch.optim.optimizer import register_optimizer_step_post_hook

from bnood import benchmark
from bnood.benchmark import BenchmarkOptions, Result
from bnood.benchmark_evaluation import bare_passes, evaluation_images, forward_plan, peak_memory, untrained_run
from bnood.benchmark_training import PerImage, TrainingSegments, random_images
from bnood.errors import UserError
from bnood.evaluation.conditions import ConditionOptions
from bnood.evaluation.evaluate import evaluate

SMALL = ["--width=8", "--batch_size=16", "--steps=2", "--warmup=1", "--rounds=1", "--threads=1"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """So small networks gain nothing from a second thread, and wait for it long where the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_training_and_its_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "speed.json"
    results = benchmark.main([*SMALL, "--parts=training", f"--output={output}"])
    rates = {each.name: each.value for each in results if each.unit == "images/s"}
    assert list(rates) == ["bare loop", "bnood", "conventional, 0 workers", "conventional, 2 workers"]
    fastest = max(list(rates)[2:], key=lambda name: rates[name])
    quotients = {each.name: each for each in results if not each.unit}
    assert quotients["bnood / bare loop"].value == pytest.approx(rates["bnood"] / rates["bare loop"])
    assert quotients[f"bnood / {fastest}"].value == pytest.approx(rates["bnood"] / rates[fastest])
    assert [each.at_least for each in quotients.values()] == [0.9, 1.8]
    record = json.loads(output.read_text())
    assert record["threads"] == 1
    assert torch.__version__.startswith(record["versions"]["torch"])
    assert {"machine", "commit"} <= record.keys()
    assert [each["value"] for each in record["results"]] == [each.value for each in results]
    assert "bnood / bare loop" in capsys.readouterr().out


def test_norms_compare_what_auto_chooses() -> None:
    results = benchmark.main([*SMALL, "--parts=norms"])
    value = {each.name: each.value for each in results}
    assert value["ln channels_last / bn channels_last"] == pytest.approx(
        value["ln channels_last"] / value["bn channels_last"]
    )
    assert value["gn: auto (contiguous) / channels_last"] == pytest.approx(
        value["gn contiguous"] / value["gn channels_last"]
    )


def test_segments_time_the_steps_after_the_warm_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that advances by one second at each step of an optimiser, all rates are one batch per second."""
    segments = TrainingSegments(tmp_path, warmup=2, steps=3, batch_size=4, width=8)
    assert len(segments.images) == 5 * 4
    seconds = 0

    def tick(*_: object) -> None:
        nonlocal seconds
        seconds += 1

    monkeypatch.setattr("bnood.benchmark_training.time.perf_counter", lambda: float(seconds))
    hook = register_optimizer_step_post_hook(tick)
    try:
        rates = [segments.bare(), segments.bnood(), segments.conventional(0)]
    finally:
        hook.remove()
    assert rates == [4.0, 4.0, 4.0]
    assert seconds == 3 * 5


def test_the_conventional_pipeline_augments_and_normalises() -> None:
    white = random_images("white", 40, seed=0)
    white.images[:] = 255
    drawn = [PerImage(white)[index][0] for index in range(40)]
    assert drawn[0].shape == (3, 32, 32)
    assert {float(x.max()) for x in drawn} == {2.0}  # (1 - 0.5) / 0.25
    assert len({float(x.mean()) for x in drawn}) > 5  # crops show more or less of the black margin


def test_the_plan_is_what_an_evaluation_does() -> None:
    images = evaluation_images(150, [61, 40], 90)
    options = ConditionOptions(
        batch_sizes=(16, 8), shuffles=2, forward_batch=50, estimation_batch=70, mixture_share=0.25
    )
    run = untrained_run(4, images)
    evaluation = evaluate(run, images, options, resamples=2)
    record: dict[str, Any] = evaluation.record
    plan = forward_plan(images, options, record["estimator_passes"])
    assert sum(each.images for each in plan) == record["images_scored"] + record["images_estimated_on"]
    under_batch = int((evaluation.scores["statistics"] == "batch").sum())
    assert sum(each.images for each in plan if each.by_batch) == under_batch + record["images_estimated_on"]
    seen: list[tuple[bool, int]] = []
    before = {name: buffer.clone() for name, buffer in run.classifier.named_buffers()}
    hook = run.classifier.network.register_forward_hook(
        lambda network, inputs, outputs: seen.append((network.training, len(inputs[0])))
    )
    assert bare_passes(run.classifier, plan) > 0
    hook.remove()
    for by_batch in (False, True):
        some = [each for each in plan if each.by_batch == by_batch]
        assert sum(count for training, count in seen if training == by_batch) == sum(each.images for each in some)
        assert sum(training == by_batch for training, _ in seen) == sum(-(-each.images // each.size) for each in some)
    assert max(count for training, count in seen if not training) == 50
    assert all(torch.equal(buffer, before[name]) for name, buffer in run.classifier.named_buffers())


def test_the_evaluation_part_reports_ratios() -> None:
    sizes = ["--id_images=140", "--ood_images=270,26", "--calibration_images=60"]
    results = benchmark.main([*SMALL, "--width=4", "--parts=evaluation", *sizes])
    value = {each.name: each.value for each in results}
    done = value["passes done, to score"] + value["passes done, to estimate statistics"]
    assert value["passes needed"] == done
    bare = value["bare forward passes"]
    assert value["whole / bare forward passes"] == pytest.approx(value["whole"] / bare)
    assert value["forward part / bare forward passes"] == pytest.approx(value["forward part"] / bare)


def test_peak_memory_rises_with_what_is_held() -> None:
    before = peak_memory()
    held = np.ones(before // 8 + (64 << 20) // 8)  # more than the peak so far, whatever it was
    assert peak_memory() >= held.nbytes
    assert peak_memory() < 3 * held.nbytes


def test_rounds_alternate_and_give_the_median() -> None:
    calls: list[str] = []
    values = iter([1.0, 10.0, 30.0, 2.0, 9.0, 90.0])

    def variant(name: str) -> float:
        calls.append(name)
        return next(values)

    console = Console(quiet=True)
    found = benchmark.in_turn({name: lambda name=name: variant(name) for name in "ab"}, 3, console)  # type: ignore[misc]
    assert "".join(calls) == "abbaab"
    assert found == {"a": [1.0, 2.0, 9.0], "b": [10.0, 30.0, 90.0]}
    figure = benchmark.result("part", "b / a", "", benchmark.ratios(found["b"], found["a"]), at_least=10.0)
    assert (figure.value, figure.low, figure.high, figure.kept) == (10.0, 10.0, 15.0, True)


@pytest.mark.parametrize(
    ("limit", "kept"),
    [({}, None), ({"at_least": 2.0}, True), ({"at_least": 2.1}, False), ({"at_most": 2.0}, True),
     ({"at_most": 1.9}, False)],
)  # fmt: skip
def test_limits(limit: dict[str, float], kept: bool | None) -> None:
    assert Result("part", "name", "", 2.0, 2.0, 2.0, **limit).kept is kept


@pytest.mark.parametrize(
    ("given", "says"),
    [({"parts": "training,speed"}, "speed"), ({"parts": ""}, "choose from"), ({"rounds": 0}, "rounds"),
     ({"threads": 0}, "threads"), ({"ood_images": "3k"}, "3k")],
)  # fmt: skip
def test_bad_options(given: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        BenchmarkOptions(**given)  # type: ignore[arg-type]


def test_sweeps_count_their_passes(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ("--id_images=64", "--ood_images=48,40", "--calibration_images=64", "--sweep_images=24")
    figures = {each.name: each for each in benchmark.main([*SMALL, "--width=4", "--parts=sweeps", *sizes])}
    needed, done = figures["passes needed"].value, figures["passes done, layers below an intervention once"].value
    # 24 + 24 + 20 images under 20 layers' only, first, last (of which four coincide with others) and 1 + 1 + 2 more
    # kinds; the rest of what is needed are paths and batches.
    assert needed > (24 + 24 + 20) * (3 * 20 - 4 + 4)
    assert 0 < done < needed
    assert figures["done / needed"].kept
    assert "passes done" in capsys.readouterr().out
