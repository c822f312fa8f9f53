"""The settings of ``data``: whose examples there are, and how they are read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import PurePath

from fedpers.params import setting


@dataclass
class Columns:
    """Which columns of a table hold what (``csv``, ``parquet``, ``folder`` and ``hub`` sources).

    ``classes``: how many there are, where the data need not hold all of them (devices); labels are
    then 0..classes-1. Of features: ``categories``, the values that a column may have, which becomes
    a column of ones and zeros for each; ``dates``, how a column of dates is written (for
    ``strptime``, or ``ISO8601``), which becomes days; ``ranges``, [lowest, highest] for
    ``data.scale=declared``. For a language model: ``text`` is what is learned, ``context`` what
    comes before it and is not, with ``join`` between the two.
    """

    features: list[str] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    context: str | None = None
    join: str = "\n"
    image: str | None = None
    label: str = "label"
    client: str | None = None
    group: str | None = None
    classes: int | None = setting(None, least=2)
    categories: dict[str, list[str]] = field(default_factory=dict)
    dates: dict[str, str] = field(default_factory=dict)
    ranges: dict[str, list[float]] = field(default_factory=dict)


@dataclass
class Partition:
    """How examples are dealt to clients; names and meanings are those of flwr-datasets.

    ``min_size`` (dirichlet): the fewest examples of a client; null: 20, or a quarter of the mean
    where that is less.
    """

    name: str = "dirichlet"
    alpha: float = setting(0.1, above=0)
    classes_per_client: int = setting(2, least=1)
    shards_per_client: int = setting(2, least=1)
    min_size: int | None = setting(None, least=0)
    path: str | None = None


@dataclass
class Data:
    """The examples: source, partition, and each client's train, validation and test split.

    ``public_fraction`` of all examples (or ``public_clients`` whole clients, where clients are
    natural) is set aside as public data, owned by no client; where it would be natural clients'
    own, ``public_from_clients`` has to say so under privacy. Fractions of a client's examples:
    ``val_fraction`` and ``test_fraction``; the rest is for training. ``holdout_clients`` never
    train and are newcomers at the end. ``max_train`` and ``max_val``: at most so many examples of a
    client. ``shift`` turns or inverts each client's images in its own
    way.

    ``scale``: features of tables are left alone (``none``), standardised by mean and spread of the
    ``public`` rows or of ``sums`` over the clients' training rows, or brought to -1..1 from
    ``declared`` ranges (``columns.ranges``); ``auto``: by public rows where there are any.
    ``centre``: each client's own mean is taken off its features, where clients measure differently.
    ``missing``: what a feature that is missing is: an ``error``, or the column's ``mean`` or
    ``median``; ``indicator`` is the mean, and a column that says so; ``missing_words`` stand for
    nothing in numbers and dates, beside the usual ones (NA, -). Of a csv file: ``separator``,
    ``tab`` for that, ``decimal``, the sign before decimals, and ``encoding``. ``image_size``:
    pixels of both sides that images are brought to. Texts are cut at ``max_tokens``, a context from
    its beginning. ``only``: of clients that are natural, those to keep; empty for all.
    """

    name: str = "digits"
    path: str | None = None
    columns: Columns = field(default_factory=Columns)
    separator: str = ","
    decimal: str = setting(".", choices=(".", ","))
    encoding: str = "utf-8"
    image_size: int | None = setting(None, least=4, most=4096)
    max_tokens: int = setting(128, least=2)
    scale: str = setting("auto", choices=("none", "auto", "public", "declared", "sums"))
    centre: bool = False
    missing: str = setting("error", choices=("error", "mean", "median", "indicator"))
    missing_words: list[str] = field(default_factory=list)
    clients: int = setting(20, least=1)
    only: list[str] = field(default_factory=list)
    partition: Partition = field(default_factory=Partition)
    holdout_clients: int = setting(0, least=0)
    shift: str = setting("none", choices=("none", "rotate", "invert", "both"))
    split: str = setting("random", choices=("random", "blocks", "group"))
    public_fraction: float = setting(0.2, least=0, below=1)
    public_clients: int = setting(0, least=0)
    public_from_clients: bool = False
    val_fraction: float = setting(0.15, least=0, below=1)
    test_fraction: float = setting(0.25, above=0, below=1)
    max_train: int | None = setting(None, least=1)
    max_val: int | None = setting(None, least=0)

    @property
    def called(self) -> str:
        """What people call the data: the file's name, or the source's."""
        return PurePath(self.path).name if self.path else self.name
