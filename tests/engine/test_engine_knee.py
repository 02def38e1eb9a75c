"""Curves of seconds against tokens: what is read from them, how they are kept, and that a real net gives one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from sweeper.engine.curve import FORMAT, Curve
from sweeper.engine.knee import Pass, measure_curve, measured_curve, take_turns, work_key
from sweeper.engine.lora_net import LoraNet
from sweeper.engine.workload import MOST_TRIALS, Workload, slice_of, workload
from tests.engine.engine_world import World

# Throughput 100, 190, 300, 380, 390, 360 tokens a second.
CURVE = Curve(((16, 0.16), (32, 32 / 190), (64, 64 / 300), (128, 128 / 380), (256, 256 / 390), (512, 512 / 360)))


def test_the_knee_is_the_first_size_near_the_plateau_and_the_limit_the_last() -> None:
    assert CURVE.plateau == pytest.approx(390)
    assert CURVE.knee == 128
    assert CURVE.limit == 256
    assert Curve(((40, 0.5),)).knee == 40


def test_seconds_lie_between_the_points_and_follow_the_last_throughput_beyond() -> None:
    assert CURVE.seconds(16) == 0.16
    assert CURVE.seconds(3) == 0.16  # a pass has a floor
    assert CURVE.seconds(24) == pytest.approx((0.16 + 32 / 190) / 2)
    assert CURVE.throughput(5120) == pytest.approx(360)
    with pytest.raises(ValueError, match="tokens is -1"):
        CURVE.seconds(-1)


def test_a_curve_survives_json_and_nothing_else_is_one() -> None:
    assert Curve.from_json(CURVE.to_json()) == CURVE
    for text in (
        "",
        "[]",
        '{"points": []}',
        '{"format": 0, "points": [[1, 1.0]]}',
        f'{{"format": {FORMAT}, "points": [[2, 1.0], [1, 1.0]]}}',
    ):
        with pytest.raises(ValueError, match="no curve"):
            Curve.from_json(text)


class Device:
    """A device on its own clock: 3.2 ms a pass at least, and 0.1 ms a token; a shallow pass takes 1 ms."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.asked: list[int] = []
        monkeypatch.setattr("sweeper.engine.knee.time.perf_counter", lambda: self.now)

    def passes(self, tokens: int) -> tuple[int, Sequence[Pass]]:
        self.asked.append(tokens)
        return tokens, [lambda: self._work(0.001), lambda: self._work(max(0.0032, tokens * 1e-4))]

    def _work(self, seconds: float) -> None:
        self.now += seconds


def test_tokens_double_until_nothing_is_gained_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    points = take_turns(device.passes, 16, 1 << 20, 2.0)
    assert [size for size, _ in points] == device.asked == [16, 32, 64, 128]
    for size, (low, high) in points:
        assert low == pytest.approx(0.001)
        assert high == pytest.approx(max(0.0032, size * 1e-4))


def test_the_bound_and_the_time_end_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [size for size, _ in take_turns(Device(monkeypatch).passes, 16, 20, 2.0)] == [16, 20]
    device = Device(monkeypatch)
    assert len(take_turns(device.passes, 1, 1 << 30, 0.02)) < 5
    assert device.now < 0.05


def test_a_real_net_is_measured_once_and_left_as_it_was(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / "cache"))
    setup = world.setup(training={"batch_size": 4})
    net = LoraNet(setup)
    work = workload(setup.training, world.train, 64)
    curve = measured_curve(setup, net, work, most=128)
    assert len(curve.points) > 1
    assert curve.points[-1][0] <= 128
    assert net._placed == {}
    assert len(net.packed.model.base_model.layers) == 2
    assert all(not layer.adapters for layer in net._layers.values())
    (file,) = (tmp_path / "cache" / "knees").glob("*.json")
    assert Curve.from_json(file.read_text()) == curve
    assert measured_curve(setup, net, work, most=128) == curve
    file.write_text("{")  # a disk that was full, say
    again = measured_curve(setup, net, work, most=64)
    assert json.loads(file.read_text())["points"][-1][0] == again.points[-1][0] <= 64


def test_engines_that_start_together_measure_once(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / "cache"))
    setup = world.setup()
    nets = [LoraNet(setup), LoraNet(setup)]
    work = workload(setup.training, world.train, 64)
    measured: list[LoraNet] = []

    def measure(net: LoraNet, work: Workload, most: int) -> Curve:
        measured.append(net)
        return measure_curve(net, work, most)

    monkeypatch.setattr("sweeper.engine.knee.measure_curve", measure)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda net: measured_curve(setup, net, work, most=64), nets)
    assert first == second
    assert len(measured) == 1


def test_a_folder_that_cannot_be_written_costs_the_keeping_only(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / "file"))
    setup = world.setup()
    net = LoraNet(setup)
    assert measured_curve(setup, net, workload(setup.training, world.train, 64), most=32).points


def test_the_key_tells_apart_what_changes_a_curve(world: World) -> None:
    setup = world.setup()
    net = LoraNet(setup)
    work = workload(setup.training, world.train, 64)
    changed = world.setup(training={"gradient_checkpointing": True}), world.setup(threads=2)
    keys = {work_key(one, net, work) for one in (setup, *changed)}
    wider = workload(world.setup(training={"rank": 16}).training, world.train, 64)
    assert len(keys | {work_key(setup, net, wider)}) == 4
    assert work_key(world.setup(), net, work) in keys


def test_a_workload_is_whole_chunks_of_whole_rows(world: World) -> None:
    training = world.setup(training={"batch_size": 3}).training
    work = workload(training, world.train, 40)
    rows = {bytes(row.ids) for row in work.rows}
    for tokens in (1, 16, 100, 2000):
        chunks = work.chunks(tokens)
        sizes = [sum(len(row.ids) for row in chunk.rows) for chunk in chunks]
        assert 0 < sum(sizes) <= max(tokens, work.shortest)
        assert all(len(chunk.rows) <= 3 and size <= 40 for chunk, size in zip(chunks, sizes, strict=True))
        assert {bytes(row.ids) for chunk in chunks for row in chunk.rows} <= rows
    assert {chunk.slot for chunk in work.chunks(2000)} == set(range(MOST_TRIALS))
    assert work.step_tokens == 40 < 3 * work.row_tokens
    assert workload(training, world.train, 64).step_tokens == round(3 * work.row_tokens)


def test_a_slice_trains_its_own_layers_only(world: World) -> None:
    setup = world.setup(training={"targets": "all"})
    net = LoraNet(setup)
    work = workload(setup.training, world.train, 64)
    with slice_of(net, work.params, 1, trials=2) as part:
        assert part.layers == len(net.packed.model.base_model.layers) == 1
        assert part.rows[0].weights.numel() * 2 == net.trainable(work.params)
        part.train(work.chunks(64))
        assert torch.any(part.rows[0].gradient != 0)
    assert len(net.packed.model.base_model.layers) == 2
