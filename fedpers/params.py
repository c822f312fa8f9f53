"""Settings with ranges, and the parameters of what a user can choose: a method, a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedpers.config_errors import check_ranges, translate
from fedpers.errors import ConfigError


def setting(
    default: Any,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
    choices: Sequence[str] = (),
) -> Any:
    """A field with a range (``above`` and ``below`` are exclusive) or a list of choices.

    Also for the ``Params`` of a method, see ``params_of``.
    """
    limits = {"above": above, "least": least, "below": below, "most": most}
    metadata = {"limits": limits, "choices": tuple(choices)}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class NoParams:
    """For a method, or a side of one, without parameters of its own."""


def params_of(
    schema: type,
    params: Mapping[str, Any],
    *,
    also: Sequence[str] = (),
    key: str = "strategy.params",
) -> Any:
    """``strategy.params``, say, as an instance of a method's own dataclass ``schema``.

    Args:
        schema: a dataclass whose fields may carry ranges (see ``setting``).
        params: what the user set.
        also: names that the method's other side takes; they are left out here.
        key: the setting that holds them.

    Raises:
        ConfigError: a name that neither side takes, a wrong type, an impossible value.
    """
    own = {f.name for f in fields(schema)}
    for name in params:
        if name not in own and name not in also:
            known = ", ".join(sorted({*own, *also})) or "no parameters"
            raise ConfigError(f"{key}.{name}", params[name], f"one of: {known}")
    cfg = OmegaConf.structured(schema)
    given = {name: value for name, value in params.items() if name in own}
    try:
        result = OmegaConf.to_object(OmegaConf.merge(cfg, given))
    except OmegaConfBaseException as error:
        raise translate(error, schema, given, key) from None
    check_ranges(result, key)
    return result
