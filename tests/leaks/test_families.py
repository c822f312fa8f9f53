"""Each family of leaks is refused, by what moved, in which message, and by how much."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from fedpers.privacy.leaktest import Finding

Try = Callable[..., Finding | None]

GRADIENTS = r"other examples' gradients move by [\d.e+-]+ of themselves"
SENT = r"part '(body|head|prior|logits)' moves by [\d.e+-]+, in \d+ of \d+ values"
MORE = "there is a release more|a sum of .* becomes one of|what is sent changes from"
REPORT = r"reports\.\w+\.\w+.* changes from|failures\.\w+ changes from"
STATE = f"{SENT}|{REPORT}|is in another state|goes on changing"

FAMILIES: dict[str, dict[str, str]] = {
    "across_the_batch": {
        "Centred": GRADIENTS,
        "BatchNorm": GRADIENTS,
        "Attends": GRADIENTS,
        "Weakly": GRADIENTS,
        "ByTheLargest": GRADIENTS,
        "Outranked": GRADIENTS,
        "LargeOnesOnly": GRADIENTS,
        "InLargeBatches": GRADIENTS,
    },
    "coupled_losses": {
        "ForOneLabel": GRADIENTS,
        "ForRareLabels": GRADIENTS,
        "ForLargeValues": GRADIENTS,
        "ForSmallValues": GRADIENTS,
        "ByReference": GRADIENTS,
        "ForOneClassOnly": GRADIENTS,
        "ForRepeatedInputs": GRADIENTS,
        "ByTheHardest": GRADIENTS,
    },
    "hidden_state": {
        "InAnObject": STATE,
        "InATensor": STATE,
        "InItsDict": STATE,
        "InAnAttribute": "InAnAttribute.kept: a method holds no state under privacy",
        "InAModule": STATE,
        "InAModuleOnce": STATE,
        "InAClass": STATE,
        "InADefault": STATE,
        "InAClosure": STATE,
        "InACache": STATE,
        "InItsSettings": STATE,
        "InItsFirstParts": STATE,
        "InAGenerator": STATE,
        "InNumpysGenerator": STATE,
        "InTheEnvironment": STATE,
        "InAFile": "a file is written, .*fedpers-leak",
        "ForLater": r"hidden_state.SEEN.* goes on changing",
        "InTheAccount": "Account.kept is new|" + STATE,
        "InTheRoster": r"LocalAlgorithm.scored is another|" + STATE,
        "InOurModule": r"clients\.methods\.fedavg\.KEPT is another|" + STATE,
        "CountsCalls": r"CountsCalls.calls.* goes on changing",
    },
    "seen_elsewhere": {
        "InTune": STATE,
        "InRecall": STATE,
        "InPredict": STATE,
        "InForward": STATE,
        "InNewcomer": STATE,
        "InTuning": STATE,
        "InDerived": SENT,
    },
    "counts": {
        "InTheClear": SENT,
        "Ranked": GRADIENTS,
        "Normalised": GRADIENTS,
        "Multiplied": SENT,
        "TwiceNoised": "a sum is noised of which it is not shown what each example adds",
        "EveryRound": "is not in the ledger",
    },
    "thresholds": dict.fromkeys(
        ("Mask", "Signs", "Largest", "Order", "FarBeyond", "Mixed", "OnReceipt", "Kept"),
        f"{SENT}|{GRADIENTS}",
    ),
    "changing_phases": {
        "ByRound": f"{SENT}|goes on changing",
        "InTheLastRound": f"{SENT}|goes on changing",
        "InOneRound": SENT,
        "AfterSoManyRounds": SENT,
        "Rate": f"{SENT}|{REPORT}|{GRADIENTS}",
        "Penalty": SENT,
        "Trained": MORE,
        "Skipped": MORE,
        "Named": MORE,
        "OneMore": f"{MORE}|{REPORT}",
        "NotReleased": SENT,
    },
    "own_training": {
        **dict.fromkeys(
            ("Concludes", "Prepares", "Gradient", "Loss", "LastBits", "Accuracy", "Seeds"), SENT
        ),
        "Anchored": SENT,
        "ReleasedGradient": "trainer.gradient adds no noise",
    },
    "own_numbers": {
        "Centred": GRADIENTS,
        "Ranked": GRADIENTS,
        "OneNumber": "value is one number, and with privacy takes a tensor",
        "WhenPolled": GRADIENTS,
        "InTheReport": STATE,
        "Summed": GRADIENTS,
        "SummedPlainly": SENT,
        "Steps": SENT,
        "Differentiates": SENT,
        "Validates": SENT,
        "OneMore": "charged for 2 gradients, and the method takes one more",
        "ByNumber": f"{SENT}|goes on changing",
        "OneOfABank": f"what is sent changes from body|{SENT}|{GRADIENTS}",
    },
    "presence": {
        "Raises": "reports|what is sent changes from|failures",
        "NotANumber": "reports|what is sent changes from|failures",
        "MinusZero": r"part 'head' moves by 0, in 0 of 1290 values",
        "Shorter": "reports|what is sent changes from|failures",
        "Halved": "reports|what is sent changes from|failures",
        "More": "reports|what is sent changes from|failures",
        "NoiseReport": r"reports\.\w+\.noise\.head changes from [\d.]+ to [\d.]+",
        "Examples": r"reports\.\w+\.sigma changes from [\d.]+ to [\d.]+",
    },
    "patches": dict.fromkeys(
        ("Noise", "Training", "Steps", "Torch", "Clipping"), r"[\w.]+ is another"
    ),
    "own_releases": {
        "WithLittleNoise": "it is not shown what each example adds",
        "WithoutNoise": "it is not shown what each example adds",
        "WithNoiseUnpaid": "a release with noise of [\\d.]+ is not in the ledger",
        "ShownOthers": "a noised sum holds [\\d.]+ beside what each example adds",
        "Longer": "a release with noise of [\\d.]+ is not in the ledger",
        "OwnNoise": SENT,
    },
}
BACKBONES = {
    "across_the_batch:CentredInputs": GRADIENTS,
    "across_the_batch:CentredBelow": GRADIENTS,
    "across_the_batch:CentredInTraining": GRADIENTS,
    "across_the_batch:Neighbouring": GRADIENTS,
    "hidden_state:InABuffer": "buffers.*seen.* goes on changing|is in another state",
    "hidden_state:OnALayer": "seen is in another state|goes on changing",
}
QUICK = {
    *("Weakly", "ForRepeatedInputs", "InAModuleOnce", "ForLater", "InPredict", "Ranked", "Signs"),
    *("InTheLastRound", "LastBits", "Raises", "Clipping", "WithNoiseUnpaid"),
}


def each(names: dict[str, str]) -> list[Any]:
    quick = [pytest.param(n, says, id=n) for n, says in names.items() if n.split(":")[1] in QUICK]
    slow = [
        pytest.param(n, says, id=n, marks=pytest.mark.slow)
        for n, says in names.items()
        if n.split(":")[1] not in QUICK
    ]
    return quick + slow


METHODS = {f"{file}:{n}": says for file, names in FAMILIES.items() for n, says in names.items()}


@pytest.mark.parametrize(("method", "says"), each(METHODS))
def test_a_method_that_leaks_is_refused(tried: Try, method: str, says: str) -> None:
    found = tried(method)
    assert found is not None
    assert re.search(says, found.what), found
    assert found.cure and "\n" not in "".join(found)


@pytest.mark.parametrize(("backbone", "says"), each(BACKBONES))
def test_a_backbone_that_leaks_is_refused(tried: Try, backbone: str, says: str) -> None:
    found = tried("fedavg", f"model.name={backbone}")
    assert found is not None
    assert re.search(says, found.what), found


def test_a_task_that_leaks_is_refused(tried: Try) -> None:
    scale = ["task.params.mean=0", "task.params.sd=1"]
    for name, more in (("CoupledTask", []), ("CentredTargets", scale)):
        found = tried("fedavg", f"task.name=coupled_losses:{name}", *more)
        assert found is not None
        assert re.search(GRADIENTS, found.what), found


def test_a_layer_that_takes_places_for_examples_is_refused(tried: Try) -> None:
    """Under a method that trains nothing else; else Opacus says that the layers do not agree."""
    found = tried("fedbabu", "model.name=across_the_batch:Flattened")
    assert found is not None
    assert re.search(GRADIENTS, found.what), found


def test_a_method_that_tells_how_many_examples_there_are_is_refused(tried: Try) -> None:
    told = "own_training:TellsHowMany"
    found = tried(told, "privacy.weights=counts", "privacy.delta=1e-5")
    assert found is not None
    assert re.search(SENT, found.what) and "with one example removed, " in found.what


@pytest.mark.slow
def test_else_their_number_is_public(tried: Try) -> None:
    assert tried("own_training:TellsHowMany") is None
