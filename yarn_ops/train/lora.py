"""Adapters: which parameters learn, the adapter directory, and merging into the base.

The model stays the plain transformers model; PEFT's layers are injected into it. Norms and embeddings are
trained in place and kept whole. The directory of method `lora` is PEFT's own format, norms and embeddings
as `modules_to_save`, so `PeftModel.from_pretrained` on the patched base reads it; where tied embeddings
were trained PEFT refuses it rather than untie them. Method `full` keeps all parameters under their names
in the base.

    adapter.json                 method, steps, first and final loss, ... (ours)
    adapter_config.json          lora only
    adapter_model.safetensors    float32
    curve.jsonl                  loss, learning rate and gradient norm of every step
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from yarn_ops.errors import TrainError
from yarn_ops.models.device import side_by_side
from yarn_ops.recipe import Train

FACTS = "adapter.json"
TENSORS = "adapter_model.safetensors"
CURVE = "curve.jsonl"
ALL_LINEAR = "all-linear"
MERGED_AT_ONCE = 1 << 18
"""elements of a weight to which a product is added at a time: 1 MiB, which a processor's cache holds"""
PEFT_PREFIX = "base_model.model."
PEFT_NAME = ".default"  # PEFT's name of an unnamed adapter: in the model's names, not in the file's


def make_trainable(model: PreTrainedModel, train: Train) -> None:
    """Freeze the model but for what the recipe trains, which becomes float32; `lora`: insert PEFT's layers.

    TrainError when the recipe names a layer that is not there.
    """
    model.requires_grad_(train.method == "full")
    if train.method == "lora":
        whole, targets = _whole_modules(model, train), _targets(model, train.targets)
        _inject(LoraConfig(r=train.rank, lora_alpha=train.alpha, target_modules=targets), model)
        for module in whole:
            module.requires_grad_(True)
    for parameter in trained_parameters(model).values():
        parameter.data = parameter.data.float()


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that learn, by the model's own names; a tied one once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def save_adapter(
    model: PreTrainedModel,
    directory: Path,
    facts: Mapping[str, Any],
    curve: Sequence[Mapping[str, Any]],
    trained: Mapping[str, Tensor] | None = None,
) -> None:
    """Write an adapter directory; equal tensors, facts and curve give equal bytes. `trained`: tensors by the
    names of `trained_parameters`; None: these parameters."""
    trained = trained_parameters(model) if trained is None else trained
    directory.mkdir(parents=True)
    if facts["method"] == "lora":
        whole = {name.split(".")[-2] for name in trained if not _is_lora(name)}
        config = model.peft_config["default"].to_dict()
        config |= {
            "modules_to_save": sorted(whole) or None,
            "ensure_weight_tying": bool(model.config.tie_word_embeddings and "embed_tokens" in whole),
            "inference_mode": True,
        }
        _write_json(directory / "adapter_config.json", config)
    places = _places(trained, facts["method"])
    save_file({place: trained[name].detach().cpu() for place, name in places.items()}, directory / TENSORS)
    _write_json(directory / FACTS, {**facts, "tensors": len(trained)})
    (directory / CURVE).write_text("".join(json.dumps(point) + "\n" for point in curve), encoding="utf-8")


def attach_to_modules(
    model: nn.Module, directory: Path, modules: Sequence[str]
) -> tuple[set[str], list[str]]:
    """Put the part of a kept adapter that belongs to these modules on a bare model, reading no other tensor.

    "" is the model itself. Returns the names in the file of what found its place, and as `load_trained` does.
    TrainError where a tensor of these modules is missing or of another shape.
    """
    facts = read_facts(directory)
    prefixes = tuple(f"{module}." if module else "" for module in modules)
    with _open(directory) as kept:
        found = {name for name in kept.keys() if name.removeprefix(PEFT_PREFIX).startswith(prefixes)}  # noqa: SIM118
        if facts["method"] == "lora":
            names = [name.removeprefix(PEFT_PREFIX).partition(".lora_A.") for name in found]
            for module, prefix in zip(modules, prefixes, strict=True):
                linears = {name.removeprefix(prefix) for name, a, _ in names if a and name.startswith(prefix)}
                if linears:
                    config = _kept_config(directory)
                    config.target_modules = linears
                    _inject(config, model.get_submodule(module))
        parameters = {name: p for name, p in model.named_parameters() if name.startswith(prefixes)}
        _require_places(parameters, kept, facts, directory, found)
        return found, _place(parameters, kept, facts["method"])


def load_trained(model: PreTrainedModel, directory: Path) -> list[str]:
    """Set a model's parameters from an adapter directory; TrainError unless every tensor finds its place.

    Returns the names of those whose values were the same before: nothing was learnt there, or it was lost.
    """
    facts, parameters = read_facts(directory), dict(model.named_parameters())
    with _open(directory) as kept:
        _require_places(parameters, kept, facts, directory, {*kept.keys()})
        return _place(parameters, kept, facts["method"])


def merge_lora(model: nn.Module) -> None:
    """Add every LoRA product to the weight of its linear layer, in that weight's dtype, and remove PEFT's
    layers.

    The sums are those of PEFT's own merge, which holds three more tensors of the weight's size.
    """
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, LoraLayer)]
    if layers:
        side_by_side(_add_product, [layer for _, layer in layers], layers[0][1].weight.device.type)
    for name, layer in layers:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config


@torch.no_grad()
def _add_product(layer: LoraLayer) -> None:
    weight, scaling = layer.get_base_layer().weight, layer.scaling["default"]
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    rows = max(1, MERGED_AT_ONCE // a.shape[1])
    product = a.new_empty((min(rows, len(b)), a.shape[1]))  # one for all: new memory costs more than sums
    for some, of_b in zip(weight.split(rows), b.split(rows), strict=True):
        some += torch.mm(of_b, a, out=product[: len(of_b)]).mul_(scaling).to(some.dtype)


def read_facts(directory: Path) -> dict[str, Any]:
    """The contents of adapter.json; TrainError where it cannot be read."""
    try:
        return json.loads((directory / FACTS).read_bytes())
    except (OSError, ValueError) as error:
        raise TrainError(
            f"{directory / FACTS}: unreadable ({error}); this is not an adapter directory"
        ) from None


def read_losses(directory: Path) -> list[float]:
    """The loss of every step, in nats a token."""
    return [json.loads(line)["loss"] for line in (directory / CURVE).read_text("utf-8").splitlines()]


def _inject(config: LoraConfig, model: nn.Module) -> None:
    """PEFT's layers into the linear layers that are named, and into nothing else.

    Of a mixture that it knows, PEFT would take the names of its dense layers for those of fused experts.
    """
    known = getattr(model, "config", None)
    if known is None:
        inject_adapter_in_model(config, model)
        return
    kept = known.model_type
    known.model_type = ""
    try:
        inject_adapter_in_model(config, model)
    finally:
        known.model_type = kept


def _kept_config(directory: Path) -> LoraConfig:
    config = LoraConfig.from_pretrained(directory)
    config.modules_to_save, config.ensure_weight_tying = None, False  # whole parameters are ours to place
    config.inference_mode = False
    return config


@contextmanager
def _open(directory: Path) -> Iterator[Any]:
    """The adapter's tensors, each read when it is asked for; TrainError where they cannot be read."""
    try:
        with safe_open(directory / TENSORS, framework="pt", backend="pread") as kept:
            yield kept
    except (OSError, SafetensorError) as error:
        raise TrainError(f"{directory / TENSORS}: unreadable ({error}); train again") from error


def _require_places(
    parameters: Mapping[str, nn.Parameter],
    kept: Any,
    facts: Mapping[str, Any],
    directory: Path,
    found: set[str],
) -> None:
    """TrainError unless these tensors of the file are those that the parameters want."""
    places = _places(parameters, facts["method"])
    lost = {place for place in places if _is_lora(place)} - found
    strange = {
        place
        for place in found
        if place not in places or [*parameters[places[place]].shape] != kept.get_slice(place).get_shape()
    }
    tensors = len(kept.keys())
    if lost or strange or tensors != facts["tensors"]:
        raise TrainError(
            f"{directory / TENSORS}: {tensors} tensors of {facts['tensors']}, {len(lost)} missing, "
            f"{len(strange)} of no such name or shape in the model; it belongs to another base or rank"
        )


@torch.no_grad()
def _place(parameters: Mapping[str, nn.Parameter], kept: Any, method: str) -> list[str]:
    """Set the parameters that the file has; the names of those whose values stayed the same."""
    unchanged, found = [], set(kept.keys())
    for place, name in _places(parameters, method).items():
        if place in found:
            parameter, value = parameters[name], kept.get_tensor(place)
            if torch.equal(parameter.detach().cpu().float(), value):
                unchanged.append(name)
            parameter.copy_(value)
    return unchanged


def _targets(model: PreTrainedModel, targets: Sequence[str]) -> list[str]:
    """PEFT's `target_modules`. TrainError for a name that no linear layer has; PEFT ignores it beside
    others."""
    head = model.get_output_embeddings()  # the loss multiplies by its weight alone
    linears = [
        name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and layer is not head
    ]
    if tuple(targets) == (ALL_LINEAR,):  # PEFT's own would take in fused experts, which are no layers
        return linears
    known = {name.rpartition(".")[2] for name in linears}
    for target in targets:
        if target not in known:
            raise TrainError(
                f"train.targets: no linear layer is named {target!r}; choose from {', '.join(sorted(known))}"
            )
    return list(targets)


def _whole_modules(model: PreTrainedModel, train: Train) -> list[nn.Module]:
    """The norms and embeddings that the recipe trains in full."""
    whole: list[nn.Module] = []
    if train.train_norms:
        whole += [module for module in model.modules() if "norm" in type(module).__name__.lower()]
        if not whole:
            raise TrainError(f"train.train_norms: {type(model).__name__} has no norms; set it to false")
    if train.train_embeddings:
        whole.append(model.get_input_embeddings())
    return whole


def _is_lora(name: str) -> bool:
    return ".lora_" in name


def _places(names: Iterable[str], method: str) -> dict[str, str]:
    """{name in the file: name in the model}. PEFT's files carry its wrapper's name, not the adapter's."""
    if method == "full":
        return {name: name for name in names}
    return {PEFT_PREFIX + (name.replace(PEFT_NAME, "") if _is_lora(name) else name): name for name in names}


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    # PEFT keeps layer names in sets, whose order changes from process to process
    path.write_text(json.dumps(value, indent=2, sort_keys=True, default=sorted) + "\n", encoding="utf-8")
