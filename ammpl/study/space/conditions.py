"""Which searched parameters can ever matter: their own conditions, and the switches of the configuration.

A parameter that cannot change any number wastes a dimension of the search and reads like a result: it is refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from ammpl.config import METHODS, Scalar
from ammpl.errors import UserError
from ammpl.study.space.parameters import Parameter

MOST_SETTINGS = 4096  # of the switches, tried one by one; beyond, an impossible chain of conditions goes unnoticed

_MASKED = ("learned", "binary", "random")
_CONTEXT = {"model.text.context": ("shared", "class")}
_NETWORKS = {"model.interaction.direction": ("both", "image_to_text", "text_to_image")}
_PADDED = {"model.mask.kind": _MASKED}
_EACH_CLASS = {"model.mask.kind": _MASKED, "model.mask.scope": ("class", "text")}

MATTERS: dict[str, Mapping[str, tuple[Scalar, ...]]] = {
    "model.text.init": _CONTEXT,
    "model.text.length": _CONTEXT,
    "model.text.template": {"model.text.context": ("fixed",)},
    "model.mask.scope": {"model.mask.kind": _MASKED},
    "model.mask.width": {"model.mask.scope": ("text",)},
    "model.mask.parameterization": {"model.mask.kind": ("learned", "binary")},
    "model.mask.initial_probability": {"model.mask.kind": ("learned", "binary")},
    "model.mask.temperature": {"model.mask.kind": ("learned",)},
    "model.mask.estimator": {"model.mask.kind": ("learned",)},
    "model.mask.evaluation": {"model.mask.kind": ("learned",)},
    "model.mask.samples": {"model.mask.kind": ("learned",), "model.mask.evaluation": ("samples",)},
    "model.mask.keep_rate": {"model.mask.kind": ("random",)},
    "model.padding.content": _PADDED,
    "model.padding.depth": _PADDED,
    "model.interaction.width": _NETWORKS,
    "model.interaction.strength": _NETWORKS,
    "model.interaction.image_source": {"model.interaction.direction": ("both", "image_to_text")},
    "model.tokens.count": {"model.tokens.kind": ("visual",)},
    "model.tokens.depth": {"model.tokens.kind": ("visual", "coupled")},
    "training.mask_lr_multiplier": {"model.mask.kind": ("learned", "binary")},
    "training.probe_masks": {"model.mask.kind": ("learned", "binary")},
    "model.candidates": _EACH_CLASS,
    "training.grad_tolerance": _EACH_CLASS,
    "training.chunk": _EACH_CLASS,
}
"""A field of the trial -> the switches that make it matter, each with the values that do. Others always matter."""


def check_parameters_matter(parameters: Mapping[str, Parameter], base: Mapping[str, Scalar], where: str) -> None:
    """Refuse a space in which a parameter can never change a number.

    A condition on a fixed value that does not hold is no mistake: it is how one file serves several fixed values.

    Args:
        parameters: what is searched, its names and conditions checked.
        base: every field's fixed or default value.
        where: names the space in errors.

    Raises:
        UserError: a switch is off, conditions exclude each other, or no parameter is active at all.
    """
    # By the file's own fixed values, these are asleep; what they would need is not asked.
    asleep = {
        name
        for name, parameter in parameters.items()
        if any(other not in parameters and base[other] not in allowed for other, allowed in parameter.when.items())
    }
    own = METHODS[str(base["method"])].reads
    for name in parameters:
        switches = {} if name in own else MATTERS.get(name, {})
        for switch, values in switches.items():
            searched = parameters.get(switch)
            possible = base[switch] in values if searched is None else any(map(searched.can_be, values))
            if not possible and name not in asleep:
                is_what = f"is {base[switch]!r}" if searched is None else "never takes such a value"
                raise UserError(
                    f"{where}: parameters.{name}",
                    f"can never matter: it needs {switch} {_one_of(values)}, which {is_what}",
                    fix=f"remove it, or change {switch}",
                )
    if len(asleep) == len(parameters):
        raise UserError(f"{where}: parameters", "none is ever active: no 'when' holds with these fixed values")
    ever = _ever_active(parameters, base)
    for name in parameters:
        if ever is not None and name not in ever | asleep and not _hangs_on(name, parameters, asleep):
            raise UserError(
                f"{where}: parameters.{name}.when",
                "its conditions can never hold together",
                got={other: list(allowed) for other, allowed in parameters[name].when.items()},
                fix="mind the conditions of the parameters that it names",
            )


def _ever_active(parameters: Mapping[str, Parameter], base: Mapping[str, Scalar]) -> set[str] | None:
    """Return the parameters that some choice of the others makes active; None if there are too many choices."""
    values: dict[str, dict[Scalar, None]] = {}
    for parameter in parameters.values():
        for other, allowed in parameter.when.items():
            if other in parameters:
                values.setdefault(other, dict.fromkeys(parameters[other].extremes())).update(dict.fromkeys(allowed))
    settings = 1
    for choices in values.values():
        settings *= len(choices)
    if settings > MOST_SETTINGS:
        return None
    ever: set[str] = set()
    for chosen in itertools.product(*values.values()):
        setting, current = dict(zip(values, chosen, strict=True)), dict(base)
        for name, parameter in parameters.items():
            if all(current[other] in allowed for other, allowed in parameter.when.items()):
                ever.add(name)
                current[name] = setting.get(name)
    return ever


def _hangs_on(name: str, parameters: Mapping[str, Parameter], asleep: set[str]) -> bool:
    """Return whether a parameter's conditions lead, over others', to one that is asleep."""
    return name in asleep or any(
        _hangs_on(other, parameters, asleep) for other in parameters[name].when if other in parameters
    )


def _one_of(values: tuple[Scalar, ...]) -> str:
    shown = [repr(value) for value in values]
    return shown[0] if len(shown) == 1 else ", ".join(shown[:-1]) + " or " + shown[-1]
