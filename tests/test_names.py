"""Layouts nest, and are the same in every direction: joined, split, and read by parts."""

import numpy as np
import pytest

from easyfn.names.layout import Beside, Flattened, Joined, Plain, Stacked, Transposed
from easyfn.names.rules import concatenated, experts, rename, tensors_for, transposed

LAYOUTS = {
    "plain": Plain(),
    "transposed": Transposed(),
    "joined": Joined(1, 3),
    "beside each other": Beside(1, (1, 3, 2)),
    "stacked": Stacked(),
    "experts": Stacked(Joined(0, 2)),
    "transposed experts": Stacked(Joined(0, 2, Transposed())),
    "joined after the transposition": Transposed(Joined(2, 3)),
    "rows of experts": Flattened(),
    "rows of experts, joined and turned": Joined(1, 3, Transposed(Flattened())),
    "joined twice": Joined(0, 2, Joined(1, 3)),
}


@pytest.mark.quick("names", "layouts nest")
@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_nest(name):
    layout, shape = LAYOUTS[name], (4, 6, 5)
    ours = np.arange(120).reshape(shape)
    theirs = layout.split(ours)
    assert layout.number(shape) == len(theirs)
    assert [t.shape for t in theirs] == list(layout.shapes(shape))
    np.testing.assert_array_equal(layout.join(theirs, shape), ours)
    index = (slice(1, 4), slice(2, 5), slice(0, 4))
    out = np.full((3, 3, 4), -1)
    for number, where, into in layout.cut(out, index, shape):
        into[...] = theirs[number][where]
    np.testing.assert_array_equal(out, ours[index])


@pytest.mark.quick("names", "rules name tensors both ways")
def test_rules_name_tensors():
    rules = [
        experts("layers.{i}.gate_up", "layers.{i}.{e}.gate", "layers.{i}.{e}.up"),
        transposed("layers.{i}.c_attn"),
        concatenated("layers.{i}.qk", "layers.{i}.q", "layers.{i}.k"),
        rename("layers.{rest}", "h.{rest}"),
    ]
    found = tensors_for("layers.1.gate_up", (2, 6, 4), rules)
    assert found.names == ("h.1.0.gate", "h.1.0.up", "h.1.1.gate", "h.1.1.up")
    assert found.experts and found.together == 2 and found.axis == 1 and set(found.shapes()) == {(3, 4)}
    found = tensors_for("layers.0.c_attn", (6, 4), rules)
    assert found.transposed and found.names == ("h.0.c_attn",) and found.shapes() == [(4, 6)]
    found = tensors_for("layers.0.qk", (6, 4), rules)
    assert found.names == ("h.0.q", "h.0.k") and found.axis == 0 and set(found.shapes()) == {(3, 4)}
    assert tensors_for("layers.0.o", (6, 4), rules).plain
