"""Files of weights: read without running code from them, matched key by key, written completely or not at all."""

from __future__ import annotations

import logging
import os
import pickle
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from decathlete.compat import COMPILED, compiled
from decathlete.errors import CheckpointError, listed
from decathlete.files import atomic_write

# what a training leaves: what --resume needs, the best weights on the validation cases, and the final weights
LAST, BEST, FINAL = "last.pt", "model.pt", "model_final.pt"
# what trainers put around a state dict: ours first, which has both `model` (averaged) and `network` in last.pt
WRAPPERS = ("model", "state_dict", "model_state_dict", "network", "net")
# and before its keys: DistributedDataParallel, torch.compile, the attribute of a Lightning module
PREFIXES = ("module.", f"{COMPILED}.", "model.", "network.", "net.")

logger = logging.getLogger(__name__)


def read_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Content of a checkpoint file, on the CPU; only tensors and plain values are accepted.

    Raises:
        CheckpointError: no such file, a pickle that holds other objects than weights, or a damaged file.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            path,
            "no such file of weights",
            remedy="Train the bundle, or pass the path of its weights with --checkpoint",
        )
    try:
        with warnings.catch_warnings():  # of a foreign pickle; the refusal below says it
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            path,
            "expected weights only, nothing that runs code",
            "a pickle of other objects, or a damaged file",
            "Save a plain state dict: torch.save(network.state_dict(), path)",
        ) from error
    except (RuntimeError, EOFError, ValueError, OSError, KeyError) as error:
        raise CheckpointError(
            path,
            "not readable as a checkpoint of torch.save",
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'an empty message'}",
            "Copy the file again; it may be incomplete",
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(path, "expected a state dict", f"a {type(content).__name__}")
    return dict(content)


def state_dict_of(
    content: Mapping[str, Any], where: str | os.PathLike, names: Collection[str] = ()
) -> dict[str, torch.Tensor]:
    """The weights in a checkpoint's content: the content itself, or what stands under ``model`` or a key like it.

    What other trainers put around a network is taken off, and a line in the log says so: a key of `WRAPPERS`, however
    deep; and with ``names`` a prefix of `PREFIXES` that every key has, where no key is the network's as it stands.

    Args:
        content: of a checkpoint's file.
        where: what an error and the log call it.
        names: keys of the network's own state dict; without them prefixes stay.

    Raises:
        CheckpointError: no mapping of names to tensors, or several that could be meant.
    """
    weights: Any = content
    taken_off: list[str] = []
    while isinstance(weights, Mapping) and not _is_state_dict(weights):
        found = [key for key in WRAPPERS if isinstance(weights.get(key), Mapping)]
        if len(found) > 1 and found[0] != WRAPPERS[0]:
            raise CheckpointError(where, "several state dicts", f"one under each of {listed(found)}",
                                  "Save the right one alone: torch.save(network.state_dict(), path)")  # fmt: skip
        if found and (found[0] != WRAPPERS[0] or weights is not content):  # a last.pt of ours needs no word
            taken_off.append(f"the key '{found[0]}'")
        weights = weights[found[0]] if found else None
    if weights is None or not weights:
        raise CheckpointError(
            where,
            f"no state dict, neither plain nor under {' or '.join(map(repr, WRAPPERS))}",
            f"the keys are {listed(content)}" if content else "the file is empty",
            "Save one: torch.save(network.state_dict(), path)",
        )
    weights = dict(weights)
    while names and not any(key in names for key in weights):
        prefix = next((p for p in PREFIXES if all(key.startswith(p) for key in weights)), "")
        if not prefix:
            break
        taken_off.append(f"the prefix '{prefix}'")
        weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    if taken_off:
        logger.warning("%s: removed %s around the weights", where, " and ".join(taken_off))
    return weights


def _is_state_dict(content: Mapping[Any, Any]) -> bool:
    return all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in content.items())


def load_weights(network: torch.nn.Module, path: str | os.PathLike, where: str | None = None) -> torch.nn.Module:
    """Fill ``network`` with the weights of a file, every key and shape matched, and return it.

    Args:
        network: its parameters and buffers keep their device and type.
        path: a state dict that torch.save wrote, plain or wrapped as other trainers do; see `state_dict_of`.
        where: what an error names besides the file: the bundle or config id that asked for these weights.

    Raises:
        CheckpointError: no such file, no weights, or another network's; keys and shapes that differ are named.
    """
    place = f"{path} ({where})" if where else str(path)
    weights = state_dict_of(read_checkpoint(path), place, network.state_dict().keys())
    match_weights(network, weights, place)
    return network


def match_weights(network: torch.nn.Module, weights: Mapping[str, torch.Tensor], where: str) -> None:
    """Copy ``weights`` into ``network``, or raise a CheckpointError that names the keys and shapes that differ."""
    own = network.state_dict()
    missing = [k for k in own if k not in weights]
    unexpected = [k for k in weights if k not in own]
    shapes = [
        f"{k} is {_shape(weights[k])} in the file and {_shape(own[k])} in the network"
        for k in own
        if k in weights and weights[k].shape != own[k].shape
    ]
    faults = [f"missing {listed(missing)}"] * bool(missing) + [f"unexpected {listed(unexpected)}"] * bool(unexpected)
    faults += [f"{len(shapes)} of another shape: {listed(shapes)}"] * bool(shapes)
    if faults:
        raise CheckpointError(
            where,
            "the weights do not fit this network",
            "; ".join(faults),
            "Use the weights that belong to this bundle, or change its network block to theirs",
        )
    network.load_state_dict(weights, strict=True)


def save_checkpoint(content: Mapping[str, Any], path: str | os.PathLike) -> Path:
    """Write ``content`` with torch.save, atomically: what stood at ``path`` survives a failure.

    Raises:
        CheckpointError: the disk is full, or the folder cannot be written.
    """
    path = Path(path)
    try:
        with atomic_write(path) as part:
            torch.save(dict(content), part)
    except (OSError, RuntimeError) as error:  # torch's own writer turns a full disk into a RuntimeError
        kept = "The previous file is untouched. " if path.is_file() else ""
        raise CheckpointError(
            path,
            "the checkpoint could not be written",
            str(error).splitlines()[0],
            f"{kept}Free some disk space or choose another --output_dir, then resume with --resume",
        ) from error
    return path


def plain_weights(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of the network itself, without the wrappers of distributed or compiled training, on the CPU."""
    return {k: v.detach().to("cpu", copy=True).contiguous() for k, v in unwrap(network).state_dict().items()}


def unwrap(network: torch.nn.Module) -> torch.nn.Module:
    """The network inside DistributedDataParallel and torch.compile."""
    while True:
        inner = (
            getattr(network, "module", None)
            if isinstance(network, torch.nn.parallel.DistributedDataParallel)
            else compiled(network)
        )
        if inner is None:
            return network
        network = inner


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"
