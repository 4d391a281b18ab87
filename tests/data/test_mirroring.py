"""Left and right in the names of keypoints."""

from __future__ import annotations

import pytest

from fishnet.data.mirroring import mirror_note, mirrored_order

PAIRS = [
    ("left_eye", "right_eye"), ("Left Eye", "Right Eye"), ("LEFT_EYE", "RIGHT_EYE"), ("leftEye", "rightEye"),
    ("LeftEye", "RightEye"), ("lefteye", "righteye"), ("left eye", "right eye"), ("eye-left", "eye-right"),
    ("eyeLeft", "eyeRight"), ("eyeleft", "eyeright"), ("LEFTEYE", "RIGHTEYE"), ("L_Eye", "R_Eye"), ("l_eye", "r_eye"),
    ("l-eye", "r-eye"), ("LEye", "REye"), ("lEye", "rEye"), ("L Eye", "R Eye"), ("eye.L", "eye.R"), ("eye_l", "eye_r"),
    ("eye_L", "eye_R"), ("eyeL", "eyeR"), ("L.eye.001", "R.eye.001"), ("L", "R"), ("left", "right"),
    ("front_left_paw", "front_right_paw"), ("L_F_Paw", "R_F_Paw"), ("left_hand_l2", "right_hand_r2"),
    ("left_eye_left_corner", "right_eye_right_corner"), ("left_eye_right_corner", "right_eye_left_corner"),
    ("tl", "tr"), ("BL", "BR"), ("left-eye", "Right_Eye"),
]  # fmt: skip


@pytest.mark.parametrize("pair", PAIRS, ids="/".join)
def test_pairs_of_every_usual_form(pair: tuple[str, str]) -> None:
    assert mirrored_order(["nose", pair[0], "tail", pair[1]]) == [0, 3, 2, 1]
    assert mirror_note(["nose", *pair]) is None


@pytest.mark.parametrize("names", [
    ["lip", "rip"], ["leg", "reg"], ["lump", "rump"], ["ear", "tail", "nose"], ["lear", "rear"], ["nose_l1", "nose_l2"],
    ["bright", "light"], ["hall", "harr"], ["left_eye", "right_ear"], ["ll", "rr"], ["left_eye", "right_eye", "L_eye"],
], ids=",".join)  # fmt: skip
def test_nothing_else_is_a_pair(names: list[str]) -> None:
    assert mirrored_order(names) == list(range(len(names)))


def test_twice_mirrored_is_as_before() -> None:
    names = [name for pair in PAIRS for name in pair] + ["nose", "lr", "rl", "rr", "fl", "fr"]
    order = mirrored_order(names)
    assert [order[order[i]] for i in range(len(names))] == list(range(len(names)))


def test_sides_that_cannot_be_told_are_named() -> None:
    note = mirror_note(["left_eye", "right_eye", "L_ear", "R_eyr", "lip", "nose_l1"])
    assert note is not None
    assert "L_ear, R_eyr;" in note
    assert "lip" not in note.replace("flip", "")
    assert "\n" not in note
    numbered = mirror_note([str(number) for number in range(12)])
    assert numbered is not None
    assert "no left/right pairs" in numbered
    assert "9 and 2 more" in numbered
    assert mirror_note(["center"]) is None
    assert mirror_note([]) is None
    assert mirror_note(["nose", "left_eye", "right_eye", "upright"]) is None
