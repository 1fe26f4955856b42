"""Checkpoints in a run folder. At any moment, the folder has one complete checkpoint.

    run/latest.json             names the newest complete checkpoint
    run/step-000012/            tensors.safetensors and state.json

Tensors are stored as safetensors and everything else as JSON, so that loading runs no code. A new checkpoint is written
beside the old one. It becomes the newest when latest.json is replaced, which is an atomic operation of the file system.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from text_gym.errors import DataError, TextGymError
from text_gym.files import read_json, replace_file

FORMAT = "text_gym checkpoint 2"
NAME = re.compile(r"step-\d+(-again)?")  # name of the subfolder with a checkpoint
T = TypeVar("T")
Json = dict[str, Any]
"""An object of JSON."""


class CheckpointError(TextGymError, ValueError):
    """A checkpoint is missing, damaged, or belongs to another agent."""


class Checkpoint(NamedTuple):
    """Content of a checkpoint."""

    kind: str
    """Name of the agent."""
    step: int
    """Number of steps learned."""
    state: Json
    """Settings, seed, and everything else that is not a tensor."""
    tensors: dict[str, Tensor]
    """Parameters and the state of the optimisers."""


def save_checkpoint(folder: str | Path, checkpoint: Checkpoint) -> None:
    """Save a checkpoint as the newest of the folder, and remove the previous one."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    before = _newest(folder)
    if before is not None and (kind := _read(folder / before / "state.json").get("kind")) != checkpoint.kind:
        raise CheckpointError(f"{folder} has a run of {kind!r}; give {checkpoint.kind!r} another folder")
    name = f"step-{checkpoint.step:06d}"
    if before == name:
        name += "-again"  # never overwrite the checkpoint that latest.json names
    target = folder / name
    shutil.rmtree(target, ignore_errors=True)  # of a run that was killed while writing it
    target.mkdir()
    tensors = target / "tensors.safetensors"
    save_file({k: t.detach().contiguous() for k, t in checkpoint.tensors.items()}, tensors)
    _flush(tensors)
    header = {"format": FORMAT, "kind": checkpoint.kind, "step": checkpoint.step, "state": checkpoint.state}
    _write(target / "state.json", header)
    _flush(target)
    _write(folder / "latest.json", {"format": FORMAT, "name": name})
    _flush(folder)
    for other in folder.glob("step-*"):
        if other.name != name:
            shutil.rmtree(other, ignore_errors=True)
    for part in folder.glob("latest.json.*.part"):  # of a run that was killed while replacing it
        part.unlink(missing_ok=True)


def load_checkpoint(folder: str | Path, kind: str, device: str | torch.device = "cpu") -> Checkpoint:
    """Load the newest checkpoint of a folder; raise CheckpointError unless it is from an agent of this kind."""
    return _unless_replaced(folder, lambda: _load(Path(folder), kind, device))


def _load(folder: Path, kind: str, device: str | torch.device) -> Checkpoint:
    path, header = _find(folder, kind)
    try:
        tensors = load_file(path / "tensors.safetensors", device=str(device))
        for key, tensor in tensors.items():
            if tensor.is_floating_point() and tensor.isnan().any():
                raise ValueError(f"{key} has NaN values")
        return Checkpoint(kind, int(header["step"]), dict(header["state"]), tensors)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as problem:
        raise CheckpointError(f"the checkpoint in {folder} is damaged: {problem}") from problem


def read_state(folder: str | Path, kind: str) -> Json:
    """Read the state of the newest checkpoint, without its tensors."""
    state = _unless_replaced(folder, lambda: _find(Path(folder), kind))[1].get("state")
    return state if isinstance(state, dict) else {}


def _find(folder: Path, kind: str) -> tuple[Path, Json]:
    """Return the path of the newest checkpoint and the content of its state.json."""
    name = _newest(folder)
    if name is None:
        raise CheckpointError(f"there is no checkpoint in {str(folder)!r}; check the path")
    header = _read(folder / name / "state.json")
    if header.get("kind") != kind:
        raise CheckpointError(
            f"{folder} has a checkpoint of {header.get('kind')!r}, not of {kind!r}; give another folder"
        )
    return folder / name, header


def has_checkpoint(folder: str | Path) -> bool:
    """Return whether the folder has a checkpoint."""
    return (Path(folder) / "latest.json").exists()


def version_of(folder: str | Path) -> object:
    """Return a value that changes whenever a checkpoint is saved in the folder; None without a checkpoint."""
    try:
        status = (Path(folder) / "latest.json").stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _unless_replaced(folder: str | Path, read: Callable[[], T]) -> T:
    """Read a checkpoint; read again if another process replaces it in the meantime."""
    for _ in range(100):
        version = version_of(folder)
        try:
            return read()
        except CheckpointError:
            if version_of(folder) == version:
                raise
    return read()


def _newest(folder: Path) -> str | None:
    if not has_checkpoint(folder):
        return None
    name = _read(folder / "latest.json").get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name) or not (folder / name).is_dir():
        raise CheckpointError(
            f"{folder / 'latest.json'} names the checkpoint {name!r}, which does not exist; restore it, or start a new "
            "run in another folder"
        )
    return name


def _write(path: Path, content: Json) -> None:
    with replace_file(path) as file:
        file.write(json.dumps(content, indent=1).encode())


def _flush(path: Path) -> None:
    """Wait until a file or a folder is written to disk (fsync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read(path: Path) -> Json:
    try:
        content = read_json(path)
    except DataError as problem:
        raise CheckpointError(str(problem)) from problem
    if isinstance(content, dict) and content.get("format") == FORMAT:
        return content
    found = content.get("format") if isinstance(content, dict) else None
    if str(found).startswith(FORMAT[:-1]):
        raise CheckpointError(
            f"cannot read {path}: its format is {found!r}, and this version of text_gym reads {FORMAT!r}; train again"
        )
    raise CheckpointError(f"cannot read {path}: it is not a {FORMAT}; check the path")


def pack_parts(
    parts: Mapping[str, nn.Module | torch.optim.Optimizer],
) -> tuple[dict[str, Tensor], dict[str, list[Json]]]:
    """Collect the tensors and the optimiser settings of modules and optimisers.

    Args:
        parts: Modules and optimisers by name.

    Returns:
        Tensors by name, "part.name", and the parameter groups of each optimiser without their tensors.
    """
    tensors: dict[str, Tensor] = {}
    groups: dict[str, list[Json]] = {}
    for name, part in parts.items():
        if isinstance(part, nn.Module):
            tensors |= {f"{name}.{key}": value for key, value in part.state_dict().items()}
        else:
            packed, groups[name] = pack_optimizer(name, part)
            tensors |= packed
    return tensors, groups


def unpack_parts(
    parts: Mapping[str, nn.Module | torch.optim.Optimizer], tensors: Mapping[str, Tensor], groups: Json
) -> None:
    """Load the results of pack_parts() into modules and optimisers."""
    for name, part in parts.items():
        if isinstance(part, nn.Module):
            part.load_state_dict(tensors_of(name, tensors))
        else:
            unpack_optimizer(name, part, tensors, groups[name])


def tensors_of(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of one part, without the prefix "name." of their names."""
    return {key.removeprefix(f"{name}."): tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")}


def pack_optimizer(name: str, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[Json]]:
    """Return the state of an optimiser as tensors by name, and its parameter groups."""
    state = optimizer.state_dict()
    tensors = {
        f"{name}.{number}.{key}": torch.as_tensor(value)
        for number, values in state["state"].items()
        for key, value in values.items()
    }
    return tensors, state["param_groups"]


def unpack_optimizer(
    name: str, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], groups: list[Json]
) -> None:
    """Load the results of pack_optimizer() into an optimiser."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors_of(name, tensors).items():
        number, field = key.split(".")
        state.setdefault(int(number), {})[field] = tensor
    current = optimizer.state_dict()["param_groups"]
    restored = [{**now, **saved, "params": now["params"]} for now, saved in zip(current, groups, strict=True)]
    optimizer.load_state_dict({"state": state, "param_groups": restored})
