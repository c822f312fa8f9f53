"""The plan: what may run under privacy, and what is refused before a run, with the cure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from clients.admission import check_private
from clients.base import LocalAlgorithm, find_algorithm
from clients.training.trainer import Trainer
from fedpers.config import Config, load_config
from fedpers.context import Context
from fedpers.data import FederatedData, load_data
from fedpers.errors import ConfigError
from fedpers.models import Outputs, build_model
from fedpers.parts import Part, Parts
from fedpers.phases import Phase, Prox
from fedpers.tasks import cross_entropy

SOUND = (
    *("fedavg", "fedavg-ft", "fedper", "fedrep", "fedbabu", "ditto", "perada", "apfl", "feddpa"),
    *("fedcp", "pfedsim", "prior", "local"),
)


def config_of(*overrides: str) -> Config:
    return load_config(None, ["data.clients=5", "privacy.enabled=true", *overrides])


@pytest.fixture(scope="module")
def digits() -> FederatedData:
    return load_data(config_of())


def built(
    algorithm: type[LocalAlgorithm], digits: FederatedData, *overrides: str, params: Any = None
) -> LocalAlgorithm:
    config = config_of("model.name=mlp", *overrides)
    chosen = algorithm.Params() if params is None else params
    return algorithm(config, build_model(config, digits), chosen)


def refused(algorithm: type[LocalAlgorithm], digits: FederatedData) -> str:
    with pytest.raises(ConfigError) as found:
        check_private("odd", built(algorithm, digits))
    assert str(found.value).startswith("strategy.name: got 'odd', takes ")
    assert "\n" not in str(found.value)
    return str(found.value)


@pytest.mark.parametrize("share", ["ffa", "both", "a-only"])
@pytest.mark.parametrize("name", SOUND)
def test_what_is_shipped_is_sound(digits: FederatedData, name: str, share: str) -> None:
    found, params = find_algorithm(name, config_of(f"strategy.name={name}"), ["gate_width"])
    keeps_adapter = {"body"} <= {*found.keeps} & {*found.sends} or name == "fedbabu"
    if share == "a-only" and keeps_adapter:
        pytest.skip("the method refuses a-only")
    check_private(name, built(found, digits, f"model.lora.share={share}", params=params))


def test_fedala_is_not(digits: FederatedData) -> None:
    found, _ = find_algorithm("fedala", config_of("strategy.name=fedala"), [])
    assert "FedALA.prepare reads more; set accounted = True in that class" in refused(found, digits)


class Two(LocalAlgorithm):
    """A personal head trained without privacy, and a body that is sent."""

    keeps = ("head",)
    sends = ("body",)

    def phases(self) -> Sequence[Phase]:
        body, head = {"body": "body"}, {"head": "personal.head"}
        return [
            Phase(name="own head", model=body | head, trains=("head",), released=False),
            self.shared(),
        ]

    def shared(self, **more: Any) -> Phase:
        model = {"body": "body", "head": "initial.head"}
        return Phase(name="shared body", model=model, trains=("body",), released=True, **more)

    def receive(self, broadcast: Parts, personal: Parts, context: Context) -> Parts:
        initial = {"initial.head": self.initial["head"]}
        return super().receive(broadcast, personal, context) | initial


def test_a_released_phase_that_reads_nothing_raw_is_sound(digits: FederatedData) -> None:
    check_private("two", built(Two, digits))


READS = "phase 'shared body' is released and reads 'personal.head', which was trained without"


def test_a_private_head_read_by_a_released_phase(digits: FederatedData) -> None:
    class Reads(Two):
        def shared(self, **more: Any) -> Phase:
            model = {"body": "body", "head": "personal.head"}
            return Phase(name="shared body", model=model, trains=("body",), released=True)

    line = refused(Reads, digits)
    assert READS in line and "; train 'personal.head' in a released phase, or keep" in line


def test_a_private_head_of_the_last_round_read_before_it_is_trained(digits: FederatedData) -> None:
    class Later(Two):
        def phases(self) -> Sequence[Phase]:
            own, _ = super().phases()
            model = {"body": "body", "head": "personal.head"}
            return [Phase(name="shared body", model=model, trains=("body",), released=True), own]

    assert READS in refused(Later, digits)


@pytest.mark.parametrize(
    "more",
    [
        {"reference": {"body": "body", "head": "personal.head"}},
        {"prox": Prox(1.0, {"body": "personal.head"})},
        {"blend": ({"body": "personal.head"}, 0.5)},
    ],
    ids=["reference", "anchor", "blend"],
)
def test_a_private_head_read_on_the_side(digits: FederatedData, more: dict[str, Any]) -> None:
    class Reads(Two):
        def phases(self) -> Sequence[Phase]:
            own, _ = super().phases()
            return [own, self.shared(**more)]

    assert READS in refused(Reads, digits)


def test_a_loss_over_the_batch(digits: FederatedData) -> None:
    def spread(outputs: Outputs, labels: Tensor, reference: Outputs | None) -> Tensor:
        return outputs.features.var(dim=0).sum()

    class Coupled(Two):
        def phases(self) -> Sequence[Phase]:
            own, _ = super().phases()
            return [own, self.shared(batch_loss=spread)]

    line = refused(Coupled, digits)
    assert "phase 'shared body' is released and its loss looks across the batch" in line
    assert line.endswith("; give it a loss per sample")


@pytest.mark.parametrize("kind", ["centred", "normalised", "mean"])
def test_a_loss_per_sample_that_is_none(digits: FederatedData, kind: str) -> None:
    def loss(outputs: Outputs, labels: Tensor, reference: Outputs | None) -> Tensor:
        each = cross_entropy(outputs, labels, reference)
        if kind == "centred":
            return each + (outputs.features - outputs.features.mean(dim=0)).square().mean(dim=1)
        return each / each.detach().max() if kind == "normalised" else each.mean()

    class Coupled(Two):
        def phases(self) -> Sequence[Phase]:
            own, _ = super().phases()
            return [own, self.shared(loss=loss)]

    assert "its loss looks across the batch" in refused(Coupled, digits)


def test_a_loss_over_the_batch_of_a_phase_that_is_not_released(digits: FederatedData) -> None:
    def spread(outputs: Outputs, labels: Tensor, reference: Outputs | None) -> Tensor:
        return outputs.features.var(dim=0).sum()

    class Own(Two):
        def phases(self) -> Sequence[Phase]:
            model = {"body": "body", "head": "personal.head"}
            own = Phase(
                name="own", model=model, trains=("head",), released=False, batch_loss=spread
            )
            return [own, self.shared()]

    check_private("own", built(Own, digits))


def raw(working: Parts) -> Tensor:
    return working["personal.head"].vector


LAUNDERED = {
    "as it is": lambda clean, own: own,
    "a little of it": lambda clean, own: clean + 1e-6 * own,
    "its mean": lambda clean, own: clean + own.mean(),
    "its signs": lambda clean, own: clean + torch.sign(own),
    "a comparison": lambda clean, own: clean + (own > 0).float(),
    "whether it is large": lambda clean, own: clean * (2.0 if float(own.abs().max()) > 1 else 1.0),
    "without NaN": lambda clean, own: clean + torch.nan_to_num(own),
    "whether it is huge": lambda clean, own: clean + float(own.nan_to_num().abs().max() > 1e6),
    "whether it is tiny": lambda clean, own: clean + float(own.nan_to_num().abs().max() < 1e-6),
    "which is the largest": lambda clean, own: clean + own.nan_to_num().argmax() / 7,
    "its order": lambda clean, own: clean + own.nan_to_num().argsort().argsort().float()[0],
    "how many are positive": lambda clean, own: clean + (own > 0).sum(),
}


class Chosen(LocalAlgorithm):
    """Sends under a name that its data chose."""

    accounted = True

    def prepare(self, working: Parts, trainer: Trainer) -> Parts:
        return working | {"choice": Part.of({"": trainer.examples.y.float()[:1]})}

    def upload(self, working: Parts) -> Parts:
        return working.only(self.sends if working["choice"].vector > 0 else ())


def test_an_upload_that_reads_what_the_data_made(digits: FederatedData) -> None:
    line = refused(Chosen, digits)
    assert "the upload looks for 'choice', which was neither received nor trained" in line


@pytest.mark.parametrize("how", LAUNDERED)
def test_an_upload_made_of_a_raw_part(digits: FederatedData, how: str) -> None:
    class Sends(Two):
        sends = ("body", "head")

        def upload(self, working: Parts) -> Parts:
            clean = working["initial.head"]
            clean = clean.like(clean.vector + 1)
            made = clean.like(LAUNDERED[how](clean.vector, raw(working)))
            return working.only(["body"]) | {"head": made}

    line = refused(Sends, digits)
    assert "the upload 'head' is made of parts trained without privacy" in line
    assert line.endswith("; train them in a released phase, or leave them out")


@pytest.mark.parametrize("how", LAUNDERED)
def test_a_raw_part_mixed_into_the_working_body_on_receipt(digits: FederatedData, how: str) -> None:
    class Mixes(Two):
        def receive(self, broadcast: Parts, personal: Parts, context: Context) -> Parts:
            working = super().receive(broadcast, personal, context)
            body = working["body"].vector
            own = raw(working).repeat(1 + len(body) // len(raw(working)))[: len(body)]
            return working | {"body": working["body"].like(LAUNDERED[how](body, own))}

    assert "phase 'shared body' is released and reads 'body'" in refused(Mixes, digits)


def test_a_raw_part_that_comes_back_under_another_name_two_rounds_later(
    digits: FederatedData,
) -> None:
    class Hides(Two):
        def keep(self, working: Parts) -> Parts:
            held = {"personal.old": working.get("personal.new", self.initial["head"])}
            return super().keep(working) | held | {"personal.new": working["personal.head"]}

        def receive(self, broadcast: Parts, personal: Parts, context: Context) -> Parts:
            first = self.initial["head"]
            names = ("personal.new", "personal.old")
            held = {name: personal.get(name, first) for name in names}
            return super().receive(broadcast, personal, context) | held

        def shared(self, **more: Any) -> Phase:
            model = {"body": "body", "head": "personal.old"}
            return Phase(name="shared body", model=model, trains=("body",), released=True)

    assert "reads 'personal.old'" in refused(Hides, digits)


def test_a_part_that_the_client_keeps_only_after_training(digits: FederatedData) -> None:
    class Appears(Two):
        """``personal.extra`` is not there before the second round."""

        def keep(self, working: Parts) -> Parts:
            return super().keep(working) | {"personal.extra": working["personal.head"]}

        def receive(self, broadcast: Parts, personal: Parts, context: Context) -> Parts:
            working = super().receive(broadcast, personal, context)
            extra = personal.get("personal.extra", working["initial.head"])
            return working | {"initial.head": extra}

    assert "reads 'initial.head'" in refused(Appears, digits)


def test_a_part_that_is_mixed_in_after_so_many_rounds(digits: FederatedData) -> None:
    class Waits(Two):
        """It counts its rounds in a part, and sends what is personal in the seventh."""

        def receive(self, broadcast: Parts, personal: Parts, context: Context) -> Parts:
            working = super().receive(broadcast, personal, context)
            zero = Part.of({"rounds": torch.zeros(1)})
            before = personal.get("personal.rounds", zero)
            return working | {"personal.rounds": before.like(before.vector + 1)}

        def upload(self, working: Parts) -> Parts:
            body = working["body"]
            if float(working["personal.rounds"].vector) < 7:
                return working.only(["body"])
            return Parts({"body": body.like(body.vector + raw(working).mean())})

    assert "the upload 'body' is made of parts trained without privacy" in refused(Waits, digits)
    check_private("waits", built(Waits, digits, "rounds=6"))


def test_a_part_that_is_mixed_in_by_the_number_of_the_round(digits: FederatedData) -> None:
    class Told(Two):
        """What it receives in the seventh round holds what is personal; nothing is counted."""

        def receive(self, broadcast: Parts, personal: Parts, context: Context) -> Parts:
            working = super().receive(broadcast, personal, context)
            if context.server_round != 7:
                return working
            body = working["body"]
            return working | {"body": body.like(body.vector + raw(working).mean())}

    assert "phase 'shared body' is released and reads 'body'" in refused(Told, digits)
    check_private("told", built(Told, digits, "rounds=6"))


def test_its_own_train_has_to_say_that_it_is_accounted(digits: FederatedData) -> None:
    class Trains(Two):
        def train(self, working: Parts, trainer: Trainer) -> Parts:
            return super().train(working, trainer)

    class Says(Trains):
        accounted = True

    class SaysSo(Trains):
        accounted = True

        def train(self, working: Parts, trainer: Trainer) -> Parts:
            return super().train(working, trainer)

    class Prepares(Two):
        def prepare(self, working: Parts, trainer: Trainer) -> Parts:
            return working

    class Concludes(Two):
        def conclude(self, working: Parts, trainer: Trainer) -> Parts:
            return working

    assert "Prepares.prepare reads more" in refused(Prepares, digits)
    assert "Concludes.conclude reads more" in refused(Concludes, digits)
    assert "data are read in its phases alone, and Trains.train reads more" in refused(
        Trains, digits
    )
    assert "Trains.train reads more" in refused(Says, digits)  # it is not the class that overrides
    check_private("says", built(SaysSo, digits))
