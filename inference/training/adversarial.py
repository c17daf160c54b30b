"""A PatchGAN beside the generator: a judge of patches that learns to tell made slices from real.

The option of `midslice train`, after pix2pix: it can bring back the grain that the most probable
slice lacks, at a cost in error. The judge sees the slice with its neighbours A and C and t.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from inference.checkpoint import Tensors, optimiser_tensors, restore_optimiser

WIDTHS = (64, 128, 256)
LEARNING_RATE = 5e-4
BETAS = (0.5, 0.9)
SOFT_CENTRE_HU, SOFT_HALF_HU = 40.0, 200.0  # soft tissue, seen beside the whole range
# Grain of 10 to 20 HU has to be seen: spectral norms let nothing small grow within the judge.
WHOLE_UNIT_HU, SOFT_UNIT_HU = 250.0, 25.0
VIEWS = 2  # of each slice
LEAST_PULL = 1e-12
NETWORK, OPTIMISER = "network.", "optimiser."


class Judge(nn.Module):
    """One opinion a patch of some 40 pixels: above 0 where B looks received, below where made."""

    def __init__(self, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        seen = 3 * VIEWS + 1
        for width in widths:
            layers += [
                spectral_norm(nn.Conv2d(seen, width, 4, stride=2, padding=1)),
                nn.LeakyReLU(0.2),
            ]
            seen = width
        self.layers = nn.Sequential(*layers, nn.Conv2d(seen, 1, 3, padding=1))

    def forward(self, a: Tensor, c: Tensor, b: Tensor, t: Tensor) -> Tensor:
        """(B, 1, H, W) HU three times, (B,); returns (B, 1, H/8, W/8)."""
        seen = torch.cat([_views(a), _views(c), _views(b)], dim=1)
        told = t[:, None, None, None].expand(-1, 1, *b.shape[2:])
        opinions: Tensor = self.layers(torch.cat([seen, told], dim=1))
        return opinions


def balanced(loss: Tensor, objection: Tensor, made: Tensor, share: float) -> Tensor:
    """Both together, so that at the slice the objection pulls `share` times as hard as the loss.

    The two have no common unit, and what the judge says grows as it learns.
    """
    (of_loss,) = torch.autograd.grad(loss, made, retain_graph=True)
    (of_objection,) = torch.autograd.grad(objection, made, retain_graph=True)
    weight = share * of_loss.norm() / of_objection.norm().clamp_min(LEAST_PULL)
    both: Tensor = loss + weight * objection
    return both


def _views(slice_hu: Tensor) -> Tensor:
    """(B, 2, H, W): the whole range, and soft tissue alone."""
    soft = (slice_hu - SOFT_CENTRE_HU).clamp(-SOFT_HALF_HU, SOFT_HALF_HU)
    return torch.cat([slice_hu / WHOLE_UNIT_HU, soft / SOFT_UNIT_HU], dim=1)


class Adversary:
    """The judge under training, and what it costs the generator to be found out."""

    def __init__(self, device: str) -> None:
        self._judge = Judge().to(device)
        self._optimiser = torch.optim.AdamW(self._judge.parameters(), lr=LEARNING_RATE, betas=BETAS)

    def objection(self, made: Tensor, planes: Tensor, conditions: Tensor) -> Tensor:
        """What the judge holds against slices: lower, the more received they look."""
        self._judge.requires_grad_(requires_grad=False)
        opinions = self._judge(planes[:, 1:2], planes[:, 2:3], made, conditions[:, 0])
        self._judge.requires_grad_(requires_grad=True)
        return -torch.mean(opinions)

    def learn(self, made: Tensor, truth: Tensor, planes: Tensor, conditions: Tensor) -> float:
        """One step of the judge on the same patches; returns its hinge loss, 2 where it guesses."""
        a, c, t = planes[:, 1:2], planes[:, 2:3], conditions[:, 0]
        real, fake = self._judge(a, c, truth, t), self._judge(a, c, made.detach(), t)
        loss = F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean()
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._optimiser.step()
        return float(loss.detach())

    def state(self) -> dict[str, Tensor]:
        network = {NETWORK + name: kept for name, kept in self._judge.state_dict().items()}
        optimiser = optimiser_tensors(self._optimiser)
        return network | {OPTIMISER + name: kept for name, kept in optimiser.items()}

    def restore(self, state: Tensors) -> None:
        """Go on from what a checkpoint kept; nothing kept is a judge that begins."""
        if state:
            self._judge.load_state_dict(_part(state, NETWORK))
            restore_optimiser(self._optimiser, _part(state, OPTIMISER))


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): kept for name, kept in state.items() if name.startswith(prefix)
    }
