"""Building: determinism, LoRA, pre-training and its cache, standardised features."""

import math
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F

from fedpers.cache import cached
from fedpers.config import load_config
from fedpers.errors import ConfigError
from fedpers.models import BACKBONES, base_model, build_model
from fedpers.models.build import remark
from fedpers.models.pretrain import feature_scaler

CLUSTERS = ("model.pretrain.task=clusters", "model.pretrain.clusters=8", "model.pretrain.epochs=2")
LABELS = ("model.pretrain.task=labels", "model.pretrain.epochs=2")


def same(model, other):
    ours, theirs = model.state_dict(), other.state_dict()
    assert list(ours) == list(theirs)
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("name", "kind", "overrides"),
    [
        ("mlp", "tabular", ("model.lora=null",)),
        ("mlp", "image", (*CLUSTERS, "model.standardise=true")),
        ("vit-tiny", "image", LABELS),
        ("conv1d", "signal", ("model.lora.share=both",)),
        ("cnn", "image", ()),
    ],
)
def test_two_builds_give_the_same_bits(make_config, make_data, own_cache, name, kind, overrides):
    data = make_data(kind)
    model = build_model(make_config(name, *overrides), data)
    for file in own_cache.glob("*"):  # computed again, not read
        file.unlink()
    torch.rand(17)  # where the global generator stands must not matter
    assert same(model, build_model(make_config(name, *overrides), data))
    assert not same(model, build_model(make_config(name, *overrides, "seed=1"), data))


def test_global_randomness_is_left_alone(make_config, make_data):
    data = make_data("image")
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    build_model(make_config("mlp", *LABELS, "model.standardise=true"), data)
    assert torch.equal(torch.rand(4), expected)


def test_lora_starts_as_identity_with_uniform_predictions(make_config, make_data):
    data = make_data("image")
    model = build_model(make_config("mlp"), data)
    base = base_model(make_config("mlp"), data)
    x = data.public.x
    assert torch.equal(model(x).features, base(x).features)
    assert model(x).logits.abs().max() == 0
    loss = F.cross_entropy(model(x).logits, data.public.y)
    assert loss.item() == pytest.approx(math.log(10))


def test_lora_is_the_low_rank_product_by_hand(make_config, make_data):
    data = make_data("image")
    model = build_model(make_config("mlp", "model.lora.rank=2", "model.lora.alpha=6"), data)
    part = model.read("body")
    b = torch.randn(128, 2, generator=torch.Generator().manual_seed(1))
    model.write("body", part.like(b.flatten()))
    a = dict(model.named_parameters())["trunk.hidden2.lora_A.default.weight"]
    assert a.shape == (2, 128)
    # Kaiming uniform with a = sqrt(5): within 1 / sqrt(fan in), and not all near zero.
    assert 0.9 / math.sqrt(128) < a.abs().max() < 1 / math.sqrt(128)
    base = base_model(make_config("mlp"), data).trunk
    hidden = F.relu(base.hidden1(data.public.x.flatten(1)))
    expected = F.relu(base.hidden2(hidden) + 6 / 2 * hidden @ a.T @ b.T)
    assert torch.allclose(model(data.public.x).features, expected, atol=1e-5)


@pytest.mark.parametrize("target", ["q", "blocks.0.q", "trunk.blocks.0.q"])
def test_targets_are_the_ends_of_paths(make_config, make_data, target):
    config = make_config("vit-tiny", f"model.lora.target=[{target}]")
    model = build_model(config, make_data("image"))
    blocks = (0, 1, 2) if target == "q" else (0,)
    assert list(model.slots["body"]) == [f"trunk.blocks.{i}.q.lora_B" for i in blocks]


def test_wrong_target_is_an_error_that_lists_layers(make_config, make_data):
    with pytest.raises(ConfigError) as error:
        build_model(make_config("mlp", "model.lora.target=[query]"), make_data("image"))
    assert str(error.value) == (
        "model.lora.target: got ['query'], takes names of Linear or Conv layers: hidden1, hidden2"
    )


def test_convolutions_take_adapters(make_config, make_data):
    model = build_model(make_config("cnn", "model.lora.target=[conv2]"), make_data("image"))
    assert model.slots["body"]["trunk.conv2.lora_B"].shape == (64, 4, 1, 1)
    model = build_model(make_config("conv1d"), make_data("signal"))
    assert model.slots["body"]["trunk.conv3.lora_B"].shape == (64, 4, 1)


def test_without_lora_the_head_is_initialised(make_config, make_data):
    model = build_model(make_config("mlp", "model.lora=null"), make_data("image"))
    assert model.head.weight.std() > 0.01
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("overrides", [LABELS, CLUSTERS])
def test_cache_hit_gives_the_same_weights(make_config, make_data, own_cache, overrides):
    config, data = make_config("mlp", *overrides, "model.pretrain.epochs=40"), make_data("image")
    model = build_model(config, data)
    (file,) = own_cache.glob("*.safetensors")
    written = file.stat().st_mtime_ns
    start = time.perf_counter()
    again = build_model(config, data)
    assert time.perf_counter() - start < 1
    assert same(model, again)
    assert file.stat().st_mtime_ns == written


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "other"])
def test_damaged_cache_is_computed_again(make_config, make_data, own_cache, damage):
    config, data = make_config("mlp", *LABELS), make_data("image")
    model = build_model(config, data)
    (file,) = own_cache.glob("*.safetensors")
    intact = file.read_bytes()
    if damage == "other":  # a sound file, of other settings
        build_model(make_config("mlp", *LABELS, "model.pretrain.lr=0.01"), data)
        (other,) = set(own_cache.glob("*.safetensors")) - {file}
        file.write_bytes(other.read_bytes())
    else:
        flipped = bytearray(intact)
        flipped[-5] ^= 1
        file.write_bytes({"flip": bytes(flipped), "cut": intact[:-9], "empty": b""}[damage])
    assert same(model, build_model(config, data))
    # Metadata may be written in another order, so the sizes are compared, not the bytes.
    assert len(file.read_bytes()) == len(intact)


def test_processes_that_ask_at_once_wait_for_the_first():
    calls = []

    def compute():
        calls.append(1)
        time.sleep(0.2)
        return {"w": torch.full((3,), float(len(calls)))}

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: cached("key", compute), range(4)))
    assert len(calls) == 1
    assert all(answer["w"].tolist() == [1.0, 1.0, 1.0] for answer in answers)


def test_cache_folder_that_cannot_be_written(make_config, make_data, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FEDPERS_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ConfigError, match=r"FEDPERS_CACHE: .* takes a folder that can be written"):
        build_model(make_config("mlp", *LABELS), make_data("image"))


def test_pretraining_learns_and_depends_on_what_it_should(make_config, make_data):
    data = make_data("image", n=200)
    x, y = data.public.x, data.public.y

    def trunk(*overrides):
        return build_model(make_config("mlp", *overrides), data).trunk

    def spread(trunk):  # between classes' mean features, relative to all
        with torch.no_grad():
            f = trunk(x)
        means = torch.stack([f[y == c].mean(0) for c in range(10)])
        return (means.var(0).sum() / f.var(0).sum()).item()

    untrained, labels, clusters = trunk(), trunk(*LABELS), trunk(*CLUSTERS)
    assert spread(labels) > spread(untrained) + 0.02
    assert spread(clusters) > spread(untrained) + 0.02
    some = trunk(*LABELS, "model.pretrain.classes=[1,2,3]")
    assert not same(labels, some)


def test_classes_restrict_what_is_seen(make_config, make_data):
    # Examples of other classes may be anything, even broken, and nothing changes.
    data, broken = make_data("image"), make_data("image")
    broken.public.x[broken.public.y > 2] = float("nan")
    config = make_config("mlp", *LABELS, "model.pretrain.classes=[0,2]")
    broken.public.x[broken.public.y == 1] = 9.0
    assert same(build_model(config, data), build_model(config, broken))


def test_clusters_never_read_the_labels(make_config, make_data):
    data, other = make_data("image"), make_data("image")
    other.public.y.fill_(3)
    config = make_config("mlp", *CLUSTERS)
    assert same(build_model(config, data), build_model(config, other))


@pytest.mark.parametrize(
    ("overrides", "kind", "n", "key"),
    [
        (LABELS, "image", 0, "data.public_fraction"),
        (CLUSTERS, "image", 0, "data.public_fraction"),
        (("model.standardise=true",), "image", 0, "data.public_fraction"),
        (("model.standardise=true", "model.lora=null"), "image", 40, "model.standardise"),
        (("model.pretrain.task=clusters",), "image", 20, "model.pretrain.clusters"),
        (CLUSTERS, "text", 40, "model.pretrain.task"),
        ((*LABELS, "model.pretrain.classes=[3,12]"), "image", 40, "model.pretrain.classes"),
        ((*LABELS, "model.pretrain.classes=[3]"), "image", 40, "model.pretrain.classes"),
    ],
)
def test_impossible_pretraining_is_an_error(make_config, make_data, overrides, kind, n, key):
    with pytest.raises(ConfigError) as error:
        build_model(make_config("mlp", *overrides), make_data(kind, n=n))
    assert error.value.key == key
    assert "\n" not in str(error.value)


def test_scaler_by_hand():
    # The trunk is the identity. Features: means 2 and 6, sd 1 and 3, sd of all four sqrt(9).
    class Identity(BACKBONES.get("mlp")):
        def forward(self, x):
            return x

    x = torch.tensor([[1.0, 3.0], [3.0, 9.0]])
    mean, scale = feature_scaler(Identity((2,)), x)
    overall = math.sqrt(((1 - 4) ** 2 + (3 - 4) ** 2 + (3 - 4) ** 2 + (9 - 4) ** 2) / 4)
    raw = torch.tensor([1 + 0.1 * overall, 3 + 0.1 * overall])
    norm = math.hypot(1 / raw[0], 3 / raw[1])  # of both rows
    assert torch.allclose(mean, torch.tensor([2.0, 6.0]))
    assert torch.allclose(scale, raw * norm / 4)


@pytest.mark.parametrize("name", ["mlp", "cnn", "vit-tiny"])
def test_standardised_features_are_centred_with_norm_4(make_config, make_data, name):
    data = make_data("image")
    model = build_model(make_config(name, *CLUSTERS, "model.standardise=true"), data)
    with torch.no_grad():
        features = model(data.public.x).features
    assert features.mean(0).abs().max() < 1e-4
    assert features.square().sum(1).mean().sqrt().item() == pytest.approx(4, abs=1e-3)
    assert model.standardise
    assert not {"mean", "scale"} & {n for slot in model.slots.values() for n in slot}


def test_constant_features_stay_finite():
    class Constant(BACKBONES.get("mlp")):
        def forward(self, x):
            return torch.ones(len(x), 2)

    mean, scale = feature_scaler(Constant((2,)), torch.zeros(4, 2))
    assert torch.isfinite((torch.ones(2) - mean) / scale).all()


def test_adapters_on_a_body_that_nothing_trained_are_told_so() -> None:
    said = remark(load_config(None, ["model.name=mlp"]))
    assert said.startswith("model: mlp stays as it was drawn but for its adapters; set model.lora")
    for fit in ("model.lora=null", "model.pretrain.task=labels", "model.name=hf:some/model"):
        assert remark(load_config(None, ["model.name=mlp", fit])) == ""
