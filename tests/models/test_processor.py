"""The network on a processor says what the network says."""

import numpy as np
import pytest
import torch

from inference.model import Limits
from inference.models import processor
from inference.models.midslice import SHIPPED_WEIGHTS
from inference.models.network import CONDITIONS, PLANES, Network, halved, load_network
from inference.models.processor import Convolution, fused, parted_stem, planar
from inference.models.runtime import Runtime

T = (0.0, 0.125, 0.5, 1.0)


@pytest.fixture(scope="module")
def network() -> Network:
    return load_network(SHIPPED_WEIGHTS)[0].eval().requires_grad_(requires_grad=False)


def given(t: float, rows: int = 64, columns: int = 80) -> tuple[torch.Tensor, ...]:
    """Planes around soft tissue with noise, conditions and cubic weights."""
    random = torch.Generator().manual_seed(4)
    planes = 40.0 + 60.0 * torch.randn(1, PLANES, rows, columns, generator=random)
    conditions = torch.tensor([[t, 0.5, 1.0, 0.8, 1.0, 1.0]])
    return planes, conditions, torch.tensor([[-0.0625, 0.5625, 0.5625, -0.0625]])


@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float32, 1e-4), (torch.bfloat16, 0.02)], ids=["float32", "bfloat16"]
)
def test_a_fused_trunk_says_what_the_trunk_says(
    network: Network, dtype: torch.dtype, most: float
) -> None:
    planes, conditions, _ = given(0.25)
    quick = fused(network.trunk, dtype)
    assert quick is not None
    with torch.inference_mode():
        plain = network.trunk(network.seen(planes, conditions), conditions)
        found = quick(processor.seen(planes, 0.25), conditions)[:, : plain.shape[1]].float()
    assert (found - plain).std() < most * plain.std()
    assert tuple(found.shape) == tuple(plain.shape)


@pytest.mark.parametrize("t", T)
def test_a_slice_is_composed_as_the_network_composes_it(network: Network, t: float) -> None:
    planes, conditions, cubic = given(t)
    kept = slice(8, 57), slice(16, 80)  # an odd number of rows
    with torch.inference_mode():
        heads = network.trunk(network.seen(planes, conditions), conditions)
        slices, scales = network.composed(heads, planes, conditions, cubic)
        lying = heads.contiguous(memory_format=torch.channels_last)
        found = processor.composed(lying, planes, conditions, cubic, kept)
    for ours, theirs in zip(found, (slices, scales), strict=True):
        assert tuple(ours.shape) == (49, 64)
        assert np.allclose(ours.numpy(), theirs[0, 0][kept].numpy(), atol=0.01)


def test_two_pixels_at_once_are_the_same_to_the_bit() -> None:
    random = torch.Generator().manual_seed(5)
    weight, bias = torch.randn(24, 24, 3, 3, generator=random), torch.randn(24, generator=random)
    x = torch.randn(1, 24, 20, 32, generator=random).bfloat16()
    x = x.contiguous(memory_format=torch.channels_last)
    pairs = Convolution.of(weight, bias, torch.bfloat16)
    assert pairs.pixels == 2
    with torch.inference_mode():
        single = torch.conv2d(x, weight.bfloat16(), bias.bfloat16(), padding=1)
        assert torch.equal(pairs(x), single)


def test_the_stem_sees_pixels_as_it_saw_them_parted(network: Network) -> None:
    images = torch.randn(1, PLANES + 1, 32, 48, generator=torch.Generator().manual_seed(6))
    stem = network.trunk.stem
    with torch.inference_mode():
        found = torch.conv2d(images, parted_stem(stem), stem.bias, stride=2, padding=2)
        assert torch.allclose(found, stem(halved(images)), atol=1e-4)


def test_channels_that_lie_together_are_taken_apart() -> None:
    heads = torch.arange(2 * 3 * 4, dtype=torch.float32).reshape(1, 2, 3, 4)
    assert np.array_equal(planar(heads.contiguous(memory_format=torch.channels_last)), heads[0])


def test_without_fused_layers_the_trunk_runs_as_it_is(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    planes, conditions, cubic = (tensor.numpy() for tensor in given(0.25))
    limits = Limits()
    quick = Runtime(network, "cpu", "float32")
    found, _ = quick.predict(planes, conditions, cubic, limits)

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no such operation")

    monkeypatch.setattr(Convolution, "__call__", refuse)
    assert fused(network.trunk, torch.float32) is None
    plain = Runtime(network, "cpu", "float32")
    assert quick.name == f"{plain.name}, fused"
    again, _ = plain.predict(planes, conditions, cubic, limits)
    assert np.abs(found - again).max() < 0.05  # HU


def test_a_trunk_that_says_something_else_is_not_used(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "SLOPE", 0.9)
    assert fused(network.trunk, torch.float32) is None
    assert given(0.5)[1].shape[1] == CONDITIONS
