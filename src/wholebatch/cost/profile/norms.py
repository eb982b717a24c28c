"""Which modules are normalisation layers, and what they are called in their models."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import parametrize

# torch.nn's, and with them all that derives from them: batch norm (ours, too) and instance norm from _NormBase.
_KNOWN = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm, nn.CrossMapLRN2d)
# Others tell by their class, such as LlamaRMSNorm or LayerNorm2d. Names with an underscore before them are torch's
# parametrizations of weights (_WeightNorm), which normalise no activations.
_NAMED = re.compile(r"^(?!_)(?!WeightNorm|SpectralNorm)\w*Norm(\d?[dD])?$")


@dataclass(frozen=True, eq=False)
class Norm:
    """A normalisation layer of a model.

    Attributes:
        name: see :class:`wholebatch.cost.profile.record.Layer`.
        module: the layer itself.
    """

    name: str
    module: nn.Module

    @property
    def kind(self) -> str:
        """Its class; of a parametrized layer, the class that it had before."""
        return parametrize.type_before_parametrizations(self.module).__name__

    @property
    def size(self) -> str:
        """What tells layers of one class apart: channels, groups or the normalised shape."""
        names = ("num_features", "num_channels", "normalized_shape", "size")
        found = next((getattr(self.module, name) for name in names if hasattr(self.module, name)), None)
        if isinstance(found, tuple | list):
            return "×".join(str(size) for size in found)
        return "" if found is None else str(found)

    def __str__(self) -> str:
        return f"{self.kind}({self.size})"


def is_norm(module: nn.Module) -> bool:
    """Whether it normalises activations: by its class, or by that class's name."""
    if isinstance(module, _KNOWN):
        return True
    name = parametrize.type_before_parametrizations(module).__name__
    return bool(_NAMED.match(name)) and not any(is_norm(child) for child in module.children())


def find_norms(models: Sequence[nn.Module]) -> list[Norm]:
    """The normalisation layers of ``models``, each once, in the order of ``named_modules()``."""
    titles = name_models(models)
    found: dict[nn.Module, Norm] = {}
    for model, title in zip(models, titles, strict=True):
        for path, module in model.named_modules():
            if module not in found and is_norm(module):
                name = path if len(models) == 1 else f"{title}.{path}" if path else title
                found[module] = Norm(name or title, module)
    return list(found.values())


def name_models(models: Sequence[nn.Module]) -> list[str]:
    """The models' classes; a number behind those that several have."""
    kinds = [type(model).__name__ for model in models]
    return [
        f"{kind}#{kinds[: place + 1].count(kind)}" if kinds.count(kind) > 1 else kind
        for place, kind in enumerate(kinds)
    ]
