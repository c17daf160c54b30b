"""Running a network: precision, tiles, threads, and what its name says."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from inference.model import Limits, Step
from inference.models.classical import Neighbourhood
from inference.models.filling import Filling, Inputs
from inference.models.gate import Calibration
from inference.models.midslice import Midslice, inputs_of
from inference.models.network import Network
from inference.models.runtime import (
    HALO,
    MARGIN,
    WHOLE_SIDE,
    Margins,
    Runtime,
    has_fast_bfloat16,
    tiles,
)
from inference.stacks import open_volume, read_headers, stacks_of
from node import demo
from tests.models.made import made_geometry, made_planes, window_of

REAL_CT = Path(demo.__file__).parent / "data" / "received"
STEP = Step(needs=(0, 1, 2, 3), gap=1, fractions=(0.5,))


def network() -> Network:
    torch.manual_seed(2)
    made = Network()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.03)
    return made.eval()


def made_inputs(side: int = 72) -> Inputs:
    geometry = made_geometry(4, side, side + 8)
    return inputs_of(Neighbourhood.of(STEP, window_of(geometry, made_planes(geometry), STEP)), 0.5)


def run(runtime: Runtime, given: Inputs, limits: Limits | None = None) -> np.ndarray:
    slices, _ = runtime.predict(
        given.planes[None], given.conditions[None], given.cubic[None], limits or Limits()
    )
    return slices[0]


def test_bfloat16_inside_changes_a_real_slice_by_less_than_half_a_hu() -> None:
    """Root mean square below 0.5 HU, the 99.9th percentile below 5 HU, in every gap tried."""
    (stack,) = stacks_of(read_headers(sorted(REAL_CT.glob("*.dcm"))))
    volume = open_volume(stack)
    planes = {index: volume.read(index) for index in range(len(volume))}
    exact, fast = (Midslice(precision=precision) for precision in ("float32", "bfloat16"))
    for gap in (3, 12):
        needs = tuple(range(gap - 1, gap + 3))
        step = Step(needs, gap, (0.25, 0.5))
        window = window_of(volume.geometry, [planes[i] for i in range(len(volume))], step)
        pairs = zip(
            exact.run(step, window, Limits()).planes,
            fast.run(step, window, Limits()).planes,
            strict=True,
        )
        for one, other in pairs:
            apart = np.abs(one - other)
            assert float(np.sqrt(np.square(apart).mean())) < 0.5
            assert float(np.quantile(apart, 0.999)) < 5.0
            assert apart.max() > 0.0  # it was not the same precision twice


def test_float32_is_the_network_itself() -> None:
    made, given = network(), made_inputs()
    runtime = Runtime(made, "cpu", "float32")
    padded = np.pad(given.planes, ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN)), mode="edge")
    with torch.inference_mode():
        direct, _ = made(
            torch.from_numpy(padded)[None],
            torch.from_numpy(given.conditions)[None],
            torch.from_numpy(given.cubic.copy())[None],
        )
    inner = direct[0, 0, MARGIN:-MARGIN, MARGIN:-MARGIN].numpy()
    assert np.abs(run(runtime, given) - inner).max() < 0.01


def test_a_runtime_leaves_the_network_that_it_was_given_as_it_was() -> None:
    made = network()
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    run(Runtime(made, "cpu", "bfloat16"), made_inputs())
    for name, tensor in made.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, before[name])


def test_precision_is_part_of_the_models_runtime_and_so_of_the_uids() -> None:
    names = {Midslice(precision=precision).runtime for precision in ("float32", "bfloat16")}
    assert len(names) == 2
    assert Midslice().runtime in names
    assert "calibration" in Midslice().runtime


def test_bfloat16_is_chosen_where_the_processor_has_it() -> None:
    able = torch.cpu.get_capabilities()
    fast = bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    assert has_fast_bfloat16("cpu") is fast
    made = network()
    chosen = Runtime(made, "cpu").precision
    assert chosen == ("bfloat16" if fast else "float32")


def test_threads_that_share_a_runtime_get_what_one_alone_gets() -> None:
    made = network()
    runtime = Runtime(made, "cpu")
    inputs = [made_inputs(side) for side in (64, 72, 80, 96)]
    alone = [run(runtime, given) for given in inputs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda given: run(runtime, given), inputs))
    for one, other in zip(alone, together, strict=True):
        assert one.tobytes() == other.tobytes()


def test_a_batch_gives_what_each_slice_gives_alone() -> None:
    made = network()
    runtime = Runtime(made, "cpu", "float32")
    given = made_inputs()
    two = [given.planes, given.planes[[3, 2, 1, 0, 5, 4]]]
    both, _ = runtime.predict(
        np.stack(two), np.stack([given.conditions] * 2), np.stack([given.cubic] * 2), Limits()
    )
    for planes, whole in zip(two, both, strict=True):
        single, _ = runtime.predict(
            planes[None], given.conditions[None], given.cubic[None], Limits()
        )
        assert np.abs(single[0] - whole).max() < 0.01


def test_tiles_cover_every_pixel_once_and_see_a_halo_around_it() -> None:
    shape, times = (544, 320), np.zeros((544, 320), int)
    for seen, kept, place in tiles(shape, 128):
        times[place] += 1
        for axis in (0, 1):
            first, last = seen[axis].start, seen[axis].stop
            assert first == max(0, place[axis].start - HALO)
            assert last == min(shape[axis], place[axis].stop + HALO)
            assert kept[axis].stop - kept[axis].start == place[axis].stop - place[axis].start
            assert first + kept[axis].start == place[axis].start
            assert (last - first) % 8 == 0
    assert (times == 1).all()


@pytest.mark.parametrize(("side", "count"), [(512, 1), (1024, 1), (2048, 9)])
def test_slices_up_to_1024_pixels_are_seen_whole(side: int, count: int) -> None:
    assert WHOLE_SIDE == 1024
    padded = side + 2 * MARGIN
    assert len(list(tiles((padded, padded), None))) == count


class Recording:
    """Stands for a runtime on any device; remembers how many slices it was given at once."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def predict(
        self,
        planes: np.ndarray,
        conditions: np.ndarray,
        cubic: np.ndarray,
        limits: Limits,
        margins: Margins,
    ) -> tuple[np.ndarray, np.ndarray]:
        self.batches.append(len(planes))
        return planes[:, 1], np.ones_like(planes[:, 1])


@pytest.mark.parametrize(
    ("limits", "batches"),
    [
        (Limits(device="cpu", batch=4), [1] * 6),
        (Limits(device="cuda", batch=4), [4, 2]),
        (Limits(device="cuda:1", batch=8), [6]),
        (Limits(device="cuda", batch=1), [1] * 6),
    ],
    ids=str,
)
def test_slices_go_to_a_device_in_batches_and_to_a_processor_one_by_one(
    limits: Limits, batches: list[int]
) -> None:
    geometry = made_geometry(4, 40, 40)
    step = Step((0, 1, 2, 3), 1, tuple(k / 7 for k in range(1, 7)))
    runtime = Recording()
    filling = Filling(runtime, inputs_of, Calibration())  # type: ignore[arg-type]
    made = filling.fill(step, window_of(geometry, made_planes(geometry), step), limits)
    assert runtime.batches == batches
    assert len(made.planes) == len(made.scale_hu) == len(made.classical) == 6


def test_weights_that_nobody_calibrated_say_nothing_of_their_slices() -> None:
    geometry = made_geometry(4, 40, 40)
    step = Step((0, 1, 2, 3), 1, (0.5,))
    window = window_of(geometry, made_planes(geometry), step)
    filling = Filling(Recording(), inputs_of, Calibration())  # type: ignore[arg-type]
    assert filling.fill(step, window, Limits()).trust == ()
    fitted = Filling(Recording(), inputs_of, Calibration(is_fitted=True))  # type: ignore[arg-type]
    assert len(fitted.fill(step, window, Limits()).trust) == 1
