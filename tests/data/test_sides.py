"""Left and right in the names of classes."""

from __future__ import annotations

import pytest

from decathlete.data.sides import are_counterparts, side_in_names

PAIRS = [
    ("left hippocampus", "right hippocampus"), ("LeftHippocampus", "RightHippocampus"), ("lh", "rh"),
    ("ctx-lh-precuneus", "ctx-rh-precuneus"), ("Lt_Kidney", "Rt_Kidney"), ("kidneyL", "kidneyR"),
    ("kidneyl", "kidneyr"), ("lung_L", "lung_R"), ("leftlung", "rightlung"), ("LV", "RV"), ("LCA", "RCA"),
    ("links", "rechts"), ("linke Niere", "rechte Niere"), ("gauche", "droite"), ("rein gauche", "rein droit"),
    ("Rein_G", "Rein_D"), ("左", "右"), ("左肾", "右肾"), ("riñón izquierdo", "riñón derecho"),
    ("rim esquerdo", "rim direito"), ("rene sinistro", "rene destro"), ("ren sinister", "ren dexter"),
    ("левая почка", "правая почка"), ("lewa nerka", "prawa nerka"), ("vänster njure", "höger njure"),
    ("højre nyre", "venstre nyre"), ("sol böbrek", "sağ böbrek"), ("왼쪽 신장", "오른쪽 신장"), ("أيسر", "أيمن"),
    ("αριστερός νεφρός", "δεξιός νεφρός"), ("thận trái", "thận phải"),
]  # fmt: skip


@pytest.mark.parametrize("pair", PAIRS)
def test_counterparts_are_known_in_many_spellings_and_either_order(pair):
    assert are_counterparts(*pair)
    assert are_counterparts(*reversed(pair))
    assert side_in_names(["background", "liver", *pair]) == f"'{pair[0]}' and '{pair[1]}' are two sides by name"


@pytest.mark.parametrize("name", ["left kidney", "kidney_R", "KidneyLeft", "leftlung", "Niere links", "левый", "左肾",
                                  "Left-Lateral-Ventricle"])  # fmt: skip
def test_a_side_without_its_counterpart_is_a_side(name):
    assert side_in_names(["background", name]) == f"'{name}' has a side by name"


@pytest.mark.parametrize(
    "names",
    [["spleen"], ["colon"], ["liver", "cancer"], ["rectum"], ["bright"], ["upright"], ["cleft", "direct"], ["cortex"],
     ["R2"], ["lesion L5", "lesion R2"], ["vertebrae_L1", "vertebrae_L2"], ["class_1", "class_2"], ["PZ", "TZ"],
     ["Anterior", "Posterior"], ["edema", "non-enhancing tumor", "enhancing tumour"], ["solid", "cystic"],
     ["type d", "type e"], ["LV"], ["LV", "MYO"]],
)  # fmt: skip
def test_other_names_have_no_side(names):
    assert side_in_names(["background", *names]) == ""


@pytest.mark.parametrize("name", ["left atrium", "left_atrium", "LeftVentricle"])
def test_a_chamber_of_the_heart_alone_has_no_mirror_image_to_be_confused_with(name):
    assert side_in_names(["background", name]) == ""
    assert side_in_names([name, name.replace("left", "right").replace("Left", "Right")]) != ""
