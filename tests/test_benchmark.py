"""The benchmark on tiny settings: it reports what it should, and its limits are judged right."""

import json
from pathlib import Path
from typing import Any

import benchmark
import pytest
import torch
from rich.console import Console
from torch.optim.optimizer import register_optimizer_step_post_hook

import bnood
from bnood.errors import UserError

SMALL = ["--width=8", "--batch_size=16", "--steps=2", "--warmup=1", "--rounds=1", "--threads=1"]


def test_training_and_its_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "speed.json"
    results = benchmark.main([*SMALL, "--parts=training", f"--output={output}"])
    value = {each.name: each.value for each in results}
    assert list(value) == ["bare loop", "train.py", "train.py / bare loop"]
    assert value["train.py / bare loop"] == pytest.approx(value["train.py"] / value["bare loop"])
    assert results[-1].at_least == 0.95
    record = json.loads(output.read_text())
    assert {"machine", "commit"} <= record.keys() and record["threads"] == 1
    assert [each["value"] for each in record["results"]] == [each.value for each in results]
    assert "train.py / bare loop" in capsys.readouterr().out


def test_segments_time_the_steps_after_the_warm_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that advances by one second at each step of an optimiser, all rates are one batch per second."""
    segments = benchmark.Segments(benchmark.BenchmarkOptions(warmup=2, steps=3, batch_size=4, width=8), tmp_path)
    seconds = 0

    def tick(*_: object) -> None:
        nonlocal seconds
        seconds += 1

    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: float(seconds))
    hook = register_optimizer_step_post_hook(tick)
    try:
        assert [segments.bare(), segments.train()] == [4.0, 4.0]
    finally:
        hook.remove()
    assert seconds == 2 * 5


def test_forward_passes_are_counted_and_repeated() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.BatchNorm2d(2)).eval()

    def run() -> None:
        network(torch.zeros(5, 3, 32, 32))
        network[1].train()
        network(torch.zeros(4, 3, 32, 32))
        network[1].eval()
        bnood.estimate_statistics(network, [torch.zeros(6, 3, 32, 32)])

    passes = benchmark.forward_passes(network, run)
    assert passes == [(5, False), (4, True), (6, True)]
    before = network[1].running_mean.clone()
    repeated = benchmark.forward_passes(network, lambda: benchmark.bare_passes(network, passes))
    assert [count for count, _ in repeated] == [5, 4, 6] and torch.equal(network[1].running_mean, before)


def test_rounds_alternate_and_give_the_median() -> None:
    calls: list[str] = []
    values = iter([1.0, 10.0, 30.0, 2.0, 9.0, 90.0])

    def variant(name: str) -> float:
        calls.append(name)
        return next(values)

    found = benchmark.in_turn({name: lambda name=name: variant(name) for name in "ab"}, 3, Console(quiet=True))
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
    assert benchmark.Result("part", "name", "", 2.0, 2.0, 2.0, **limit).kept is kept


@pytest.mark.parametrize(
    ("given", "says"),
    [({"parts": "training,speed"}, "speed"), ({"parts": "side_by_side"}, "choose from"), ({"rounds": 0}, "rounds"),
     ({"threads": 0}, "threads"), ({"device": "cuda", "parts": "evaluation"}, "with --device cuda")],
)  # fmt: skip
def test_bad_options(given: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        benchmark.BenchmarkOptions(**given)
