"""The client side of a method: what is trained, in which order, and what leaves the device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from clients.frozen import read_only
from clients.training.account import Releases
from clients.training.reporting import Told
from clients.training.trainer import Trainer
from clients.training.view import ModelView
from fedpers.config import Config, NoParams, params_of
from fedpers.context import Context
from fedpers.errors import ClientError, ConfigError
from fedpers.models import Outputs, PersonalModel
from fedpers.parts import Part, Parts
from fedpers.phases import Phase
from fedpers.pooling import FRAME, MOMENTS
from fedpers.registry import Registry
from fedpers.stats import Stat
from fedpers.tasks.base import TASKS, task_named

algorithms: Registry[type[LocalAlgorithm]] = Registry(
    "algorithm", key="strategy.name", package="clients.methods", group="fedpers.algorithms"
)


class LocalAlgorithm:
    """What one client does in a round. A method says which slots of the model it keeps and sends.

    A client works on named parts: ``body`` and ``head`` as received and then trained;
    ``received.body`` and so on, which stay as they came; and ``personal.*``, which live on the
    device from round to round and never leave it.

    Class attributes:
        Params: a dataclass of the method's own settings (``strategy.params``).
        keeps: slots of which the client has a personal copy; an instance's are those that its
            model has.
        sends: slots whose working parts are uploaded; likewise.
        scored: the moment at which the personal model is evaluated, for the report.
        accounted: set by a class that overrides ``train``, ``prepare`` or ``conclude``, if that
            reads the client's data through its phases only, or for parts that influence nothing
            that leaves. Private runs refuse an override for which nobody said so.
        chooses: in words, what ``predict`` makes of the personal model for each input, if it does
            more than run it: whoever is given the saved model is told.
        derives: the parts that ``derived`` makes.
        tasks: names of the tasks that the method is for; empty for any.
        releases_counts: the method sends counts of the client's labels, once, by
            ``trainer.release_counts``; they are noised and charged in private runs.
        releases_sums: how many sums the method takes each round by ``trainer.release_sums``, to
            send or to use in what it sends; likewise.
        reports: what ``report`` tells the server each round; likewise.
        polls: what ``poll`` tells it before a round; likewise.
        pools: the vectors that ``pool`` makes, beside the rounds; likewise.
        messages: the kinds of message of the method's own that ``answer`` answers. Private runs
            refuse a method that has any: no noise covers what it answers.
    """

    Params: ClassVar[type] = NoParams
    keeps: tuple[str, ...] = ()
    sends: tuple[str, ...] = ("body", "head")
    scored: ClassVar[str] = "after combining"
    accounted: ClassVar[bool] = True
    chooses: ClassVar[str] = ""
    derives: ClassVar[tuple[str, ...]] = ()
    tasks: ClassVar[tuple[str, ...]] = ()
    releases_counts: ClassVar[bool] = False
    releases_sums: ClassVar[int] = 0
    reports: ClassVar[tuple[Stat, ...]] = ()
    polls: ClassVar[tuple[Stat, ...]] = ()
    pools: ClassVar[tuple[str, ...]] = ()
    messages: ClassVar[tuple[str, ...]] = ()
    _frozen = False

    def __init__(self, config: Config, model: PersonalModel, params: Any) -> None:
        """Bind the method to a model.

        Args:
            config: the run's settings.
            model: the resident model that all clients of this process share, turn by turn.
            params: an instance of ``Params``.
        """
        self.config, self.params, self.task = config, params, model.task
        self.check(model)
        self.extend(model)
        self.slots = tuple(model.slots)
        self.keeps = tuple(slot for slot in self.keeps if slot in self.slots)
        self.sends = tuple(slot for slot in self.sends if slot in self.slots)
        if "private" in self.slots and {"body"} <= {*self.keeps} & {*self.sends}:
            takes = "ffa or both: this method keeps a whole personal adapter already"
            raise ConfigError("model.lora.share", "a-only", takes)
        self.initial = Parts({slot: model.read(slot) for slot in self.slots})
        # What the server sends and what may be uploaded, as it is at first.
        counts, declared = self.banks(), dict[str, Part]()
        for slot in self.sends:
            copies = [f"{slot}@{k}" for k in range(counts[slot])] if slot in counts else [slot]
            declared |= dict.fromkeys(copies, self.initial[slot])
        self.declared = Parts(declared)

    def __setattr__(self, name: str, value: Any) -> None:
        if self._frozen:
            raise self._kept_state(name)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if self._frozen:
            raise self._kept_state(name)
        super().__delattr__(name)

    def freeze(self) -> None:
        """From now on no attribute can be set, and lists, dicts and sets in them are read-only.

        What a method remembers in itself instead of in parts is beyond the plan, and passes from
        one client to the next.
        """
        for name, value in vars(self).items():
            super().__setattr__(name, read_only(value))
        self._frozen = True

    def _kept_state(self, name: str) -> ClientError:
        kind = type(self).__name__
        return ClientError(
            f"{kind}.{name}: a method holds no state under privacy, as no noise covers it; keep "
            "what a client remembers in a part, personal.*"
        )

    def check(self, model: PersonalModel) -> None:
        """Refuse a model without what the method works on. Default: without the slot ``head``, if
        the method keeps that or the body alone, or sends it alone.

        Raises:
            ConfigError: naming the setting.
        """
        apart = [("head" in named) != ("body" in named) for named in (self.keeps, self.sends)]
        if any(apart):
            self.needs_head(model)

    def needs_head(self, model: PersonalModel) -> None:
        """Refuse a model without the slot ``head``.

        Raises:
            ConfigError: naming the method.
        """
        if "head" not in model.slots:
            name = self.config.strategy.name
            takes = f"last-K, the adapters of the last K blocks: {name} has a head apart"
            raise ConfigError("model.head", self.config.model.head, takes)

    def extend(self, model: PersonalModel) -> None:
        """Add the method's own slots to the model. Default: none."""

    def banks(self) -> Mapping[str, int]:
        """Slots of which the server has several copies, and how many. Default: none.

        All copies come with a broadcast, as the parts ``slot@0``, ``slot@1`` and so on; the slot's
        own part is the first of them, until the method puts another in its place (``prepare``,
        ``tune``). Its ``upload`` names those that the client trained, and no others.
        """
        return {}

    def receive(self, broadcast: Parts, personal: Parts, context: Context) -> Parts:
        """The working parts at the start of a round.

        Args:
            broadcast: what the server sent.
            personal: the ``personal.*`` parts kept from earlier rounds; empty at first.
            context: whose round it is, and what the server said to this client alone.
        """
        broadcast = broadcast | {slot: broadcast[f"{slot}@0"] for slot in self.banks()}
        working = Parts({f"received.{name}": part for name, part in broadcast.items()}) | broadcast
        kept: dict[str, Part] = {}
        for slot in self.kept_slots():
            first = broadcast.get(slot, self.initial[slot])
            kept[f"personal.{slot}"] = personal.get(f"personal.{slot}", first)
        return working | kept

    def phases(self) -> Sequence[Phase]:
        """What is trained, in order. Default: everything at once, kept slots in their own copy."""
        return [
            Phase(
                name="local training",
                model=self.branch(self.keeps),
                trains=self.slots,
                released=bool(self.sends),
            )
        ]

    def newcomer(self, steps: int) -> Sequence[Phase]:
        """What a client that never took part trains of what it is given, in ``steps`` batches; see
        ``tune``.

        Default: what the method keeps, or everything if it keeps nothing, in the model that will
        predict.
        """
        model = self.filled("personal")
        assert model is not None
        return [
            Phase(
                name="newcomer",
                model=model,
                trains=self.keeps or self.slots,
                released=False,
                epochs=steps,
                steps=steps,
                decays=False,
            )
        ]

    def tuning(self) -> Sequence[Phase]:
        """What is trained before a prediction and forgotten after it. Default: nothing."""
        return []

    def releases(self) -> Releases:
        """What clients release, and are charged for: as declared."""
        released = [phase for phase in self.phases() if phase.released]
        return Releases(
            phases=sum(phase.gradients is None for phase in released),
            gradients=sum(phase.gradients or 0 for phase in released),
            labels=self.releases_counts,
            sums=self.releases_sums,
            report=bool(self.reports),
            poll=bool(self.polls),
            pools=self.pooled(),
        )

    def pooled(self) -> tuple[str, ...]:
        """The vectors that clients are asked for: as declared, and those that the settings ask for
        of any method."""
        framed = () if self.config.privacy.by_example else (FRAME,)
        whitens = self.config.model.whiten == "sums"
        return (*((*framed, MOMENTS) if whitens else ()), *self.pools)

    def shared_phase(self, name: str = "local training") -> Phase:
        """Everything that was received is trained together, reads nothing personal, and is sent."""
        return Phase(name=name, model=self.branch(()), trains=self.slots, released=True)

    def train(self, working: Parts, trainer: Trainer) -> Parts:
        """Local training: ``prepare``, the phases one after another, ``conclude``.

        A method whose phases hang on the client's data (a share that it learns) overrides this,
        still declares its phases, and is not trained in groups.
        """
        working = self.prepare(working, trainer)
        for phase in self.phases():
            working = trainer.run(phase, working)
        return self.conclude(working, trainer)

    def prepare(self, working: Parts, trainer: Trainer) -> Parts:
        """What happens before the phases. Default: nothing."""
        return working

    def conclude(self, working: Parts, trainer: Trainer) -> Parts:
        """What is made of the parts after the phases. Default: nothing."""
        return working

    def tune(self, working: Parts, trainer: Trainer, batches: int | None = None) -> Parts:
        """What happens before a prediction; nothing of it is kept, and the global model is scored
        without it. A method whose clients personalise otherwise than by phases overrides this, for
        newcomers too.

        Default: the phases of ``tuning``, or of ``newcomer``.

        Args:
            batches: for a client that never trained, on how many local batches it personalises, >=
                0; None for one that trains.
        """
        if batches == 0:
            return working
        for phase in self.tuning() if batches is None else self.newcomer(batches):
            working = trainer.run(phase, working)
        return working

    def recall(self, working: Parts, trainer: Trainer) -> Parts:
        """What a prediction needs to know of the client's own examples, as further parts; after
        ``tune``. Default: nothing; none of it is kept."""
        return working

    def predict(
        self, mode: str, working: Parts, x: Tensor, view: ModelView, split: str
    ) -> Tensor | None:
        """Scores [n, ...] in a mode, or None if there is no such model.

        Called once for each split, always with the same parts: what a method finds out about one
        split's inputs (transductive methods do) stays in that call.

        Args:
            view: runs the model; the client's training examples are not to be had from it.
            split: whose inputs these are: ``validation``, ``test``, or ``outside`` for other
                clients' test inputs.
        """
        filling = self.filled(mode)
        return None if filling is None else view.outputs(filling, working, x).scores

    def upload(self, working: Parts) -> Parts:
        """The parts that leave. Default: the working parts of ``sends``."""
        return working.only(self.sends)

    def report(self, working: Parts, trainer: Trainer) -> Told:
        """The numbers in ``reports``, for the server to mix by; after training. Not asked of a
        client without examples, unless nobody may know that it has none.

        Returns:
            By name a tensor [n] of a value for each training example, of which the mean is told; or
            a number, which private runs refuse: they clip each example's values to the bounds, and
            noise their means.
        """
        raise NotImplementedError("report")

    def poll(self, working: Parts, trainer: Trainer) -> Told:
        """The numbers in ``polls``, for the server to select by; as ``report``, of the parts
        received, before a round. Nothing is trained."""
        raise NotImplementedError("poll")

    def pool(self, what: str, working: Parts, trainer: Trainer) -> tuple[Tensor, float]:
        """What each example adds to a sum over all clients, of which all have the mean: rows [n, k]
        of the client's training or validation examples, and the norm to which private runs clip a
        row, > 0. There a row must not hang on other examples.

        Args:
            what: one of ``pools``.
            working: as received, with what the client keeps.
        """
        raise NotImplementedError(what)

    def answer(
        self, kind: str, working: Parts, body: Mapping[str, Any], trainer: Trainer
    ) -> Mapping[str, Any]:
        """The answer, JSON-able, to a message of the method's own; nothing of it is kept.

        Args:
            kind: one of ``messages``.
            working: as received, if parts came with the message; else what the client keeps.
            body: what this client is asked, JSON-able.
        """
        raise NotImplementedError(kind)

    def derived(self, name: str, upload: Parts, view: ModelView, public: Tensor) -> Part:
        """Under encryption: a further part that the server needs, made of the upload alone.

        Args:
            name: one of ``derives``, as the strategy calls it.
            public: the public inputs, which no client owns.
        """
        raise NotImplementedError(name)

    @staticmethod
    def weights_of(cosines: Sequence[float]) -> list[float]:
        """Under encryption: what the server may know of how alike a client's slot is to others'
        (``Needs.compares``), from the cosines [K] with all, its own among them."""
        raise NotImplementedError("weights_of")

    def keep(self, working: Parts) -> Parts:
        """The parts that stay on the device: every ``personal.*``."""
        return working.only(name for name in working if name.startswith("personal."))

    def filled(self, mode: str) -> Mapping[str, str] | None:
        """Which working part fills each slot to predict in ``mode``; None if it has no such model.

        ``global``: only what was received. ``personal``: the client's own copies of what it keeps.
        """
        if mode == "personal":
            return self.branch(self.keeps)
        shared = all(slot in self.sends for slot in self.slots if slot != "private")
        return self.branch(()) if shared and not self.banks() else None

    def forward(self, model: PersonalModel, x: Tensor, *, training: bool = False) -> Outputs:
        """The forward pass. Default: the model's own, with nothing random in it."""
        outputs: Outputs = model(x)
        return outputs

    def kept_slots(self) -> Iterable[str]:
        """``keeps``, and the LoRA factors that ``share: a-only`` never shares."""
        return dict.fromkeys((*self.keeps, *(("private",) if "private" in self.slots else ())))

    def branch(self, personal: Iterable[str]) -> dict[str, str]:
        """A filling of all slots: those named from their personal copy, the rest as received."""
        own = {*personal, "private"}
        return {slot: f"personal.{slot}" if slot in own else slot for slot in self.slots}


def find_algorithm(
    name: str, config: Config, server_params: Sequence[str]
) -> tuple[type[LocalAlgorithm], Any]:
    """The algorithm called ``name`` and its checked parameters.

    Raises:
        ConfigError: no such algorithm, one for other tasks, or a parameter that neither side of
            the method takes.
    """
    algorithm = algorithms.get(name)
    if not (isinstance(algorithm, type) and issubclass(algorithm, LocalAlgorithm)):
        raise ConfigError("strategy.name", name, "a subclass of clients.base.LocalAlgorithm")
    task = task_named(config.task)[0]
    if algorithm.tasks and not issubclass(task, tuple(map(TASKS.get, algorithm.tasks))):
        takes = f"a method for {config.task.name}, and this one is for {', '.join(algorithm.tasks)}"
        raise ConfigError("strategy.name", name, takes)
    return algorithm, params_of(algorithm.Params, config.strategy.params, also=server_params)
