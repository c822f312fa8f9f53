"""The run's settings: dataclasses with types and ranges, loaded and merged by OmegaConf.

Every wrong setting is one ``ConfigError`` that names the key, what it got and what it takes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedpers.channels.settings import Encryption as Encryption
from fedpers.config_data import Columns as Columns
from fedpers.config_data import Data as Data
from fedpers.config_data import Partition as Partition
from fedpers.config_errors import check_ranges, drop_retired, fold_of, translate
from fedpers.errors import ConfigError, line_of
from fedpers.params import NoParams as NoParams
from fedpers.params import params_of as params_of
from fedpers.params import setting as setting


@dataclass
class TaskSettings:
    """What is learned: a registered name or ``package.module:Class``, and its own parameters."""

    name: str = "classification"
    params: dict[str, Any] = field(default_factory=dict)


@dataclass
class Lora:
    """LoRA adapters by PEFT.

    ``share``: ``ffa`` freezes A at a shared random start and trains B (FFA-LoRA, 2403.12313);
    ``both`` trains and shares A and B; ``a-only`` trains both, shares A and keeps B on the
    device (FedSA-LoRA, 2410.01463). ``target``: names of modules, empty for the backbone's own
    default. ``layers``: in so many of the last blocks; null for all.
    """

    rank: int = setting(4, least=1)
    alpha: float = setting(8.0, above=0)
    share: str = setting("ffa", choices=("ffa", "both", "a-only"))
    target: list[str] = field(default_factory=list)
    layers: int | None = setting(None, least=1)


@dataclass
class Pretrain:
    """How a small backbone is trained on the public split before it is frozen.

    ``labels`` uses the public labels (of ``classes`` only, if given); ``clusters`` uses none:
    the network learns to predict k-means clusters of the public examples.
    """

    task: str = setting("none", choices=("none", "labels", "clusters"))
    epochs: int = setting(20, least=1)
    batch_size: int = setting(64, least=1)
    lr: float = setting(0.001, above=0)
    clusters: int = setting(30, least=2)
    classes: list[int] = field(default_factory=list)


@dataclass
class Model:
    """Backbone, adapters and head. ``lora: null`` trains the whole body.

    ``standardise`` scales the head's input by the mean and spread that features have on the
    public split. ``whiten``: what the first trained layer reads is brought to unit variance in all
    directions, by its covariance within classes on the ``public`` rows, or within clients and
    classes by ``sums`` over the clients, before the first round. ``cache`` keeps what the layers
    below the first trained one make of a client's examples, as nothing in them changes.

    Of a language model: ``head``, the slot of that name, is the adapters of the last blocks
    (``last-2``), or ``none``; null: what the task has. ``dtype``: what its frozen layers hold and
    compute in; ``auto`` is bfloat16 where the processor or GPU has units for it. Adapters are
    float32.
    """

    name: str = "vit-tiny"
    head: str | None = None
    dtype: str = setting("auto", choices=("auto", "float32", "bfloat16"))
    lora: Lora | None = field(default_factory=Lora)
    pretrain: Pretrain = field(default_factory=Pretrain)
    standardise: bool = False
    whiten: str = setting("none", choices=("none", "public", "sums"))
    cache: bool = True


@dataclass
class Strategy:
    """The method: a registered name or ``package.module:Class``, and its own parameters.

    ``fraction`` of the clients takes part in each round, never fewer than ``min_clients``.

    Against clients that lie: the change that a client sends is clipped to ``max_update_norm`` over
    all parts, and the server leaves out whoever sends a longer one. ``combine``: the shared parts
    are the ``mean`` of the updates, or without weights their coordinate-wise ``median``, their mean
    ``trimmed`` by the share ``trim`` on each side, or the mean of those that ``krum`` takes where
    that share may lie (see ``fedpers.robust``).
    """

    name: str = "ditto"
    fraction: float = setting(1.0, above=0, most=1)
    min_clients: int = setting(1, least=1)
    max_update_norm: float | None = setting(None, above=0)
    combine: str = setting("mean", choices=("mean", "median", "trimmed", "krum"))
    trim: float = setting(0.2, least=0, below=0.5)
    params: dict[str, Any] = field(default_factory=dict)


@dataclass
class Training:
    """Local training: epochs a round, examples a batch, optimiser.

    ``fold``: how many clients of a node train at once, where model and method allow it: ``off``, a
    number, or ``auto``, which tries in the first round what is faster. Results are those of one by
    one up to rounding, which depends on who is in a group: off or 1, a seed gives the same bits
    whatever the number of nodes. Off, DP-SGD uses Opacus' hooks; else none, where model and method
    allow it, which costs less. ``precision``: what layers compute in while they are trained; what
    they hold, losses, optimiser and predictions are float32.
    """

    epochs: int = setting(1, least=1)
    batch_size: int = setting(32, least=1)
    lr: float = setting(0.05, above=0)
    lr_decay: str = setting("none", choices=("none", "cosine"))
    optimizer: str = setting("sgd", choices=("sgd", "adam", "adamw"))
    momentum: float = setting(0.0, least=0, below=1)
    weight_decay: float = setting(0.0, least=0)
    fold: str = "off"
    precision: str = setting("float32", choices=("float32", "bfloat16"))


@dataclass
class Privacy:
    """Differential privacy of what leaves a client.

    ``epsilon`` and ``delta`` (default: a power of ten below 1 / 2n) hold for the whole run, and
    for all runs on the same data whose ``state`` persists. ``mechanism``: how sums are noised, a
    registered name or ``package.module:Class``. ``deterministic_for_tests`` draws the
    noise from the run's seed, which protects nobody. ``input_range``: inputs, and targets
    that are numbers, beyond -input_range..input_range are set to its ends, and NaN to 0, lest an
    odd value turn an answer into an error.

    ``unit: example`` protects each example of a client, from the server too. A released phase takes
    ``steps`` steps of DP-SGD a round, each on a Poisson sample at ``sampling_rate``, per-sample
    gradients clipped to ``max_grad_norm``, at its own learning rate ``lr``. ``weights``: every
    client's update weighs the same, or in proportion to its number of examples (``counts``). That
    number is then protected, too: it is noised, charged and sent once, and all that hangs on it
    outside the client is made of what was sent; ``delta`` has to be set.

    ``unit: client`` protects all that one client holds, from whoever sees what the server sends
    on; the server is trusted, unless ``encryption`` hides updates: then clients add the noise.
    Clients train as without privacy; each round's update is clipped to ``max_grad_norm`` as a whole
    and noised once, in the sum. ``strategy.fraction`` is then the probability with which each
    client takes part, independently of the others.
    """

    enabled: bool = False
    unit: str = setting("example", choices=("example", "client"))
    mechanism: str = "gaussian"
    weights: str = setting("uniform", choices=("uniform", "counts"))
    epsilon: float = setting(8.0, above=0, most=1e6)
    delta: float | None = setting(None, above=0, below=1)
    max_grad_norm: float = setting(1.0, above=0, most=1e6)
    sampling_rate: float = setting(1.0, above=0, most=1)
    steps: int = setting(1, least=1)
    lr: float | None = setting(None, above=0)
    input_range: float = setting(1e6, above=0, most=1e6)
    deterministic_for_tests: bool = False

    @property
    def by_example(self) -> bool:
        """Whether any one training example is protected."""
        return self.enabled and self.unit == "example"

    @property
    def by_client(self) -> bool:
        """Whether one client's data are protected as a whole."""
        return self.enabled and self.unit == "client"

    @property
    def protects_counts(self) -> bool:
        """Whether the number of a client's examples is protected, too."""
        return self.by_example and self.weights == "counts"


@dataclass
class Evaluation:
    """When clients are evaluated and which round the report takes its figures from.

    ``select``: the last evaluation, or the one with the best mean validation accuracy. Never
    the best on test. ``outside``: how many of the other clients' test examples a personal model
    is tried on in a simulation. ``adapters``: save each client's model when the run ends.
    ``diagnostics``: losses, results and exact times leave clients, without noise; null: but for
    devices.
    """

    every: int = setting(5, least=1)
    local_baseline: bool = True
    select: str = setting("last", choices=("last", "validation"))
    outside: int = setting(200, least=0)
    adapters: bool = True
    diagnostics: bool | None = None


@dataclass
class Simulation:
    """How a simulation runs: nodes (processes that host clients) and what each may use.

    ``nodes``: None for as many as there are cores for. ``gpus_per_node``: 0, or the share of a GPU,
    at most 1, on which a node trains and predicts. ``network``: the run's ``own`` where the system
    gives one, in which nobody else reaches its ports and it reaches nobody; or ``shared``.
    """

    nodes: int | None = setting(None, least=1)
    cpus_per_node: int = setting(1, least=1)
    gpus_per_node: float = setting(0.0, least=0)
    network: str = setting("own", choices=("own", "shared"))


@dataclass
class Config:
    """All settings of a run.

    ``channel``: what updates pass through where they are not encrypted: ``plain``, or
    ``package.module:Class``. ``permit``: the file in which an operator signed these settings.
    ``federation``: the file that says which device's key may speak for which clients.
    """

    seed: int = setting(0, least=0)
    rounds: int = setting(20, least=1)
    round_timeout: float = setting(3600.0, above=0)
    data: Data = field(default_factory=Data)
    task: TaskSettings = field(default_factory=TaskSettings)
    model: Model = field(default_factory=Model)
    strategy: Strategy = field(default_factory=Strategy)
    training: Training = field(default_factory=Training)
    privacy: Privacy = field(default_factory=Privacy)
    encryption: Encryption = field(default_factory=Encryption)
    channel: str = "plain"
    evaluation: Evaluation = field(default_factory=Evaluation)
    simulation: Simulation = field(default_factory=Simulation)
    output: str = "runs"
    state: str | None = None
    permit: str | None = None
    federation: str | None = None

    @property
    def confidential(self) -> bool:
        """Whether anything of clients' data is to be hidden from anybody."""
        return self.privacy.enabled or self.encryption.enabled

    def to_json(self) -> str:
        """Every setting as one line of JSON; ``config_from_json`` reads it back."""
        return json.dumps(asdict(self))

    def to_yaml(self) -> str:
        """Every setting as YAML, as in a run's ``config.yaml``."""
        return OmegaConf.to_yaml(OmegaConf.structured(self))


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """The defaults, then the YAML file at ``path``, then ``key=value`` overrides.

    Where one of these names another strategy than those before it, their ``strategy.params`` are
    dropped: they belong to the method they were written for. The overrides are one, in any order.

    Paths in the file stay as written: they are relative to the folder the command runs in.

    Raises:
        ConfigError: an unknown key, a wrong type, an impossible value, an unreadable file.
    """
    layers: list[Any] = []
    if path is not None:
        try:
            layers.append(OmegaConf.create(Path(path).read_text(encoding="utf-8")))
        except OSError as error:
            reason = error.strerror or str(error)
            raise ConfigError("config", str(path), f"a readable YAML file ({reason})") from None
        except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
            raise ConfigError("config", str(path), f"valid YAML ({line_of(error)})") from None
    given: list[Any] = []
    for item in overrides:
        if "=" not in item or item.startswith("="):
            raise ConfigError("override", item, "key=value, as in rounds=3")
        try:
            given.append(OmegaConf.from_dotlist([item]))
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise ConfigError("override", item, f"key=value ({line_of(error)})") from None
    return _merge([*layers, OmegaConf.merge(*given)] if given else layers)


def config_from_json(text: str) -> Config:
    """The settings that ``Config.to_json`` wrote, checked again. None is looked up where it is
    read, as ``${oc.env:HOME}`` would be: an environment is not for whoever sends settings."""
    if "${" in json.dumps(given := json.loads(text)):
        raise ConfigError("settings", "${...}", "literal values")
    return _merge([OmegaConf.create(given)])


def _merge(layers: Sequence[Any]) -> Config:
    cfg = OmegaConf.structured(Config)
    for layer in layers:
        if not isinstance(layer, DictConfig):
            raise ConfigError("config", OmegaConf.to_container(layer), "a mapping of settings")
        try:
            drop_retired(layer)
            for section in ("strategy", "task"):
                name = OmegaConf.select(layer, f"{section}.name")
                if name is not None and name != cfg[section].name:
                    cfg[section].params = {}  # parameters belong to their method or task
            cfg = OmegaConf.merge(cfg, layer)
        except OmegaConfBaseException as error:
            raise translate(error, Config, OmegaConf.to_container(layer)) from None
    try:
        config = OmegaConf.to_object(cfg)
    except OmegaConfBaseException as error:
        raise translate(error, Config, {}) from None
    assert isinstance(config, Config)
    check_ranges(config)
    config.training.fold = fold_of(config.training.fold)
    if config.evaluation.diagnostics is None:
        config.evaluation.diagnostics = config.data.partition.name != "devices"
    if config.privacy.protects_counts and config.privacy.delta is None:
        takes = "a number with privacy.weights=counts, as a default would tell how many examples"
        cure = "set it below 1 / (the most examples of a client)"
        raise ConfigError("privacy.delta", None, f"{takes} there are", cure)
    return config
