"""Weights files as networks: read, checked, and known by their SHA-256."""

import hashlib
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import nn

from inference.errors import ModelLoadError


def fill(network: nn.Module, path: Path, name: str) -> str:
    """Read weights into a network, ready to predict; the SHA-256 of the file.

    Counters of batches, which only training needs, are not in the file. Raises ModelLoadError for
    a file that is missing, no safetensors, or not the weights of the model of that name.
    """
    try:
        raw = path.read_bytes()
        tensors = {key: tensor.float() for key, tensor in load_tensors(raw).items()}
        counters = {n: t for n, t in network.state_dict().items() if not t.is_floating_point()}
        network.load_state_dict(tensors | counters)
    except OSError as error:
        raise ModelLoadError(f"{path}: the weights cannot be read: {error}") from error
    except SafetensorError as error:
        raise ModelLoadError(f"{path}: not a safetensors file: {error}") from error
    except RuntimeError as error:  # missing, unexpected or misshapen tensors
        raise ModelLoadError(f"{path}: not the weights of {name}: {error}") from error
    network.eval().requires_grad_(requires_grad=False)
    return hashlib.sha256(raw).hexdigest()
