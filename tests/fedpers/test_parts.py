from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedpers.parts import Layout, Part, Parts, combine
from fedpers.records import pack, unpack


def parts_of(*values: float, dtype: torch.dtype = torch.float32) -> Parts:
    body = {"b.lora_B": torch.tensor([[values[0], values[1]]], dtype=dtype)}
    return Parts(
        {
            "body": Part.of(body),
            "head": Part.of({"w": torch.tensor([float(v) for v in values[2:]])}),
        }
    )


shapes = st.lists(st.lists(st.integers(0, 4), max_size=3).map(tuple), min_size=1, max_size=4)


@st.composite
def some_parts(draw: st.DrawFn) -> Parts:
    made = {}
    for name in draw(st.sets(st.sampled_from(["body", "head", "gate"]), min_size=1)):
        dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
        bits = torch.int32 if dtype == torch.float32 else torch.int16
        tensors = {}
        for k, shape in enumerate(draw(shapes)):
            size = int(torch.Size(shape).numel())
            limits = torch.iinfo(bits)
            # Every bit pattern: NaNs with payloads, infinities, negative zeros, denormals.
            values = draw(
                st.lists(st.integers(limits.min, limits.max), min_size=size, max_size=size)
            )
            tensors[f"t{k}"] = torch.tensor(values, dtype=bits).view(dtype).reshape(shape)
        made[name] = Part.of(tensors)
    return Parts(made)


def same_bits(a: Parts, b: Parts) -> bool:
    return a.layouts == b.layouts and all(
        torch.equal(a[n].vector.view(torch.uint8), b[n].vector.view(torch.uint8)) for n in a
    )


@given(some_parts())
def test_a_record_and_a_file_give_back_every_bit(
    tmp_path_factory: pytest.TempPathFactory, parts: Parts
) -> None:
    rows, body = unpack(pack([parts, parts], {"round": 3}))
    assert body == {"round": 3}
    assert len(rows) == 2
    assert all(same_bits(row, parts) for row in rows)

    path = tmp_path_factory.mktemp("parts") / "x.safetensors"
    parts.save(path)
    assert same_bits(Parts.load(path), parts)


def test_parts_read_tensors_by_name_as_views() -> None:
    part = Part.of({"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(7.0)})
    assert part.vector.tolist() == [0, 1, 2, 3, 4, 5, 7]
    assert part["a"].shape == (2, 3)
    part.vector[5] = 9
    assert part["a"][1, 2] == 9
    assert part["b"] == 7


def test_combine_is_the_matrix_product() -> None:
    updates = [parts_of(1, 2, 10), parts_of(3, 4, 20), parts_of(5, 6, 60)]
    weights = torch.tensor([[0.5, 0.25, 0.25], [0.0, 0.0, 1.0]])
    first, second = combine(weights, updates)
    # 0.5*1 + 0.25*3 + 0.25*5 = 2.5; 0.5*2 + 0.25*4 + 0.25*6 = 3.5; 0.5*10 + 0.25*20 + 0.25*60 = 25
    assert first["body"].vector.tolist() == [2.5, 3.5]
    assert first["head"].vector.tolist() == [25.0]
    assert same_bits(second, updates[2])


def test_combine_keeps_bfloat16_and_computes_in_float32() -> None:
    # 256 + 1 is not a bfloat16: a sum in bfloat16 would lose the ones altogether.
    updates = [parts_of(v, v, 0, dtype=torch.bfloat16) for v in (256.0, 1.0, 1.0, 1.0)]
    (mixed,) = combine(torch.full((1, 4), 1.0), updates)
    assert mixed["body"].vector.dtype == torch.bfloat16
    assert mixed["body"].vector.tolist() == [260.0, 260.0]  # 259 rounds to 260 in bfloat16


def test_combine_refuses_a_wrong_number_of_weights() -> None:
    with pytest.raises(ValueError, match=r"takes \[rows, 1\]"):
        combine(torch.ones(1, 2), [parts_of(1, 2, 3)])


def test_a_part_has_one_dtype_and_the_size_of_its_layout() -> None:
    with pytest.raises(ValueError, match="dtypes"):
        Part.of({"a": torch.ones(1), "b": torch.ones(1, dtype=torch.bfloat16)})
    with pytest.raises(ValueError, match="dtypes"):
        Part.of({"a": torch.ones(1, dtype=torch.int64)})
    with pytest.raises(ValueError, match="takes"):
        Part(Layout((("a", (3,)),)), torch.ones(2))


def test_not_finite_names_the_part() -> None:
    good = parts_of(1, 2, 3)
    assert good.first_not_finite() is None
    bad = good | {"head": Part.of({"w": torch.tensor([1.0, float("nan")])})}
    assert bad.first_not_finite() == "head"


def test_a_message_that_does_not_fit_its_layout_is_refused(tmp_path: Path) -> None:
    from flwr.app import Array

    from fedpers.errors import ClientError

    content = pack([parts_of(1, 2, 3)], {})
    content.array_records["parts"]["head"] = Array(torch.ones(1, 5).numpy())
    with pytest.raises(ClientError, match="takes"):
        unpack(content)
    content = pack([parts_of(1, 2, 3)], {})
    del content.array_records["parts"]["body"]
    with pytest.raises(ClientError, match="cannot be read"):
        unpack(content)
