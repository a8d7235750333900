"""The algebra of deltas, and what maps share: by value or by a key, through copies and casts."""

import copy
import json

import pytest
import safetensors.torch
import torch

from conceptkit.concepts.concept import Concept
from conceptkit.concepts.delta import Delta, Factors
from conceptkit.errors import BadBlob, ConceptError
from conceptkit.merging import delta_norms
from conceptkit.tuners.inject import install, read_delta, uninstall
from tests.tiny import pico_concept, pico_sd

SIZES = {"a": 5, "b": 7}


def low(seed: int, rank: int = 2, width: int = 6) -> Delta:
    """Two maps that share one down."""
    make = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, width, generator=make)
    return Delta({name: (torch.randn(o, rank, generator=make), down) for name, o in SIZES.items()})


@pytest.mark.parametrize(
    "change",
    [copy.deepcopy, lambda d: d.map(torch.clone), lambda d: d.map(torch.Tensor.double), lambda d: d * 2.0],
    ids=["deepcopy", "clone", "cast", "scaled"],
)
def test_what_maps_share_stays_shared(change):
    changed = change(low(0))
    assert len(changed.downs) == 1
    (pairing,) = delta_norms.pair(changed, changed)
    assert pairing.down is not None
    rows = torch.randn(3, 6).double()
    wanted = low(0).rows(SIZES, rows) * (2 if change(low(0))["a"].first.equal(2 * low(0)["a"].first) else 1)
    assert torch.allclose(changed.rows(SIZES, rows), wanted, atol=1e-5)


def test_downs_of_equal_value_are_one_and_a_key_says_otherwise():
    up, down = torch.ones(5, 1), torch.ones(1, 6)
    maps = {"a": (up, down), "b": (up, down.clone())}
    assert len(Delta(maps).downs) == 1
    assert len(Delta(maps, {"a": 0, "b": 1}).downs) == 2
    assert len(Delta(maps, {"a": 0, "b": 1}).map(torch.Tensor.half).downs) == 2


def test_an_adapter_shares_parameters_as_its_delta_does():
    unet = pico_sd().unet
    delta = copy.deepcopy(pico_concept(pico_sd()).delta)
    for given, count in ((delta, 1), (Delta(delta, {name: name for name in delta}), len(delta))):
        install(unet, given)
        parameters = {p.data_ptr() for name, p in unet.named_parameters() if "kv_delta_down" in name}
        assert len(parameters) == count == len(read_delta(unet).downs)
        uninstall(unet)


def test_the_algebra_is_that_of_the_dense_matrices():
    one, other, rows = low(1), low(2, rank=3), torch.randn(4, 6)
    full = Delta({"a": (torch.randn(5, 6),)})
    for parts in ([one, other], [one, full], [one, other, full]):
        total = Delta.sum(parts)
        for name in total:
            dense = sum(part[name].dense() for part in parts if name in part)
            assert torch.allclose(total[name].dense(), dense, atol=1e-5)
    assert torch.allclose(
        (one + 2.0 * other).rows(SIZES, rows), one.rows(SIZES, rows) + 2 * other.rows(SIZES, rows), atol=1e-5
    )
    assert len((one + other).downs) == 1 and (one + other).rank == 5
    merged, ranks = Delta.stacked([one, full, other], SIZES)
    assert ranks == [2, 6, 3] and {f.down.shape[0] for f in merged.values()} == {11}
    assert torch.allclose(
        merged.rows(SIZES, rows), Delta.sum([one, full, other]).rows(SIZES, rows), atol=1e-4
    )
    assert (
        list(one.only(["b"])) == ["b"] == list(one.without(["a"]))
        and one.same(low(1))
        and not one.same(other)
    )
    assert list(one | full) == ["a", "b"] and (one | full)["a"].down is None


@pytest.mark.parametrize(
    "factors", [Factors(torch.randn(5, 4), torch.randn(4, 6)), Factors(weight=torch.randn(5, 6))]
)
@pytest.mark.parametrize("balanced", [False, True])
def test_a_cut_is_the_best_of_its_rank(factors, balanced):
    left, sizes, right = torch.linalg.svd(factors.dense().double(), full_matrices=False)
    cut = factors.truncated(2, balanced)
    best = (left[:, :2] * sizes[:2]) @ right[:2]
    assert torch.allclose(cut.dense().double(), best, atol=1e-5)
    lengths = cut.down.norm(dim=1)
    assert torch.allclose(lengths, sizes[:2].sqrt().float() if balanced else torch.ones(2), atol=1e-5)
    assert (factors.truncated(5, balanced) is factors) == (balanced and factors.rank <= 5)


def test_factors_that_do_not_fit_are_refused_also_in_bytes():
    for given in ((torch.ones(4, 2), torch.ones(3, 8)), (), (torch.ones(1, 1),) * 3):
        with pytest.raises(ConceptError, match="give"):
            Delta({"a": given})
    data = pico_concept(pico_sd()).to_bytes()
    tensors = safetensors.torch.load(data)
    size = int.from_bytes(data[:8], "little")
    text = json.loads(data[8 : 8 + size])["__metadata__"]
    tensors["down.0"] = torch.ones(len(tensors["down.0"]) + 1, tensors["down.0"].shape[1])
    with pytest.raises(BadBlob, match="not a concept"):
        Concept.from_bytes(safetensors.torch.save(tensors, text))
