"""Layers have one name everywhere, and the largest shares are told of norm layers and features apart."""

import pandas as pd
import pytest
from synthetic_study import LAYERS, make_layers

from bnood.report.layer_panels import layer_name, share_picture


@pytest.mark.parametrize(
    ("layer", "position", "name"),
    [
        ("network.blocks.6.norm2", 16.0, "layer 16 (blocks.6.norm2)"),
        ("stem.norm", 0, "layer 0 (stem.norm)"),
        ("penultimate", 20, "layer 20 (penultimate features)"),
    ],
)
def test_a_layer_is_named_by_the_number_of_the_axis(layer: str, position: float, name: str) -> None:
    assert layer_name(layer, position) == name


def test_the_largest_shares_of_norm_layers_and_of_the_features() -> None:
    layers = make_layers(["bn", "ln"], (0, 1))
    last = layers[layers["position"] == 0].assign(layer="penultimate", position=len(LAYERS), share_above_id_p99=0.002)
    layers = pd.concat([layers, last], ignore_index=True)
    at = (layers["network"] == "bn") & (layers["dataset"] == "dtd") & (layers["statistics"] == "running")
    layers.loc[at & (layers["position"] == 3), "share_above_id_p99"] = 0.75
    layers.loc[(layers["layer"] == "penultimate") & (layers["network"] == "ln"), "share_above_id_p99"] = 0.06
    found = share_picture(layers)
    assert found is not None
    assert "75.0 % in bn at layer 3 (layer2.0.norm1) on dtd" in found.says
    assert "In the penultimate features, which ReAct's picture is about, it is 0.2 % in bn" in found.says
    assert "6.0 % in ln" in found.says
    assert "counted from 0" in found.how and "penultimate, the last, is the features" in found.how
    assert [panel.title for panel in found.panels] == ["bn, running statistics", "bn, matched statistics", "ln"]
    assert {"layer_number", "share_above_id_p99"} <= set(found.numbers.columns)
    assert set(found.numbers.loc[found.numbers["network"] == "ln", "statistics"]) == {"none kept"}
    without = share_picture(layers[layers["layer"] != "penultimate"])
    assert without is not None and "In the penultimate features" not in without.says
