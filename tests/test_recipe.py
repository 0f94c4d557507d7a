"""Recipes: what is written is what is meant, and a slip of the pen is told with the nearest key."""

import os
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field

from andon.errors import RecipeError
from andon.recipe import Recipe, validate

FULL = """
product = "bottle"
seed = 3
[data]
images = "parts"
[input]
channels = 1
depth = 16
[geometry]
size = 512
crop = [10, 20, 300, 200]
ignore = [[[0, 0], [10, 0], [10, 10]]]
[detector]
name = "memory-bank"
[detector.settings]
bank = 500
[decision]
review_rate = 0.1
reject_rate = 0.02
min_area = 12
[split]
calibrate = 0.3
"""


def test_a_recipe_survives_being_written() -> None:
    recipe = Recipe.parse(FULL, "full")
    assert recipe.geometry.size == 512
    assert recipe.detector.settings == {"bank": 500}
    assert Recipe.parse(recipe.dump(), "dumped") == recipe


def test_an_empty_recipe_is_all_defaults() -> None:
    assert Recipe.parse("", "empty") == Recipe()


def test_paths_are_relative_to_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "lots.csv").write_text("stem,group\n")
    file = tmp_path / "my part.toml"
    file.write_text('[data]\nimages = "good"\ngroups = "lots.csv"\n')
    recipe = Recipe.load(file)
    assert recipe.product == "my part"
    assert recipe.data.images == str(tmp_path / "good")
    assert recipe.data.groups == str(tmp_path / "lots.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sed = 1", "r.toml: sed: unknown key 'sed'. Did you mean 'seed'?"),
        ("[geometry]\nsiez = 256", "r.toml: geometry.siez: unknown key 'siez'. Did you mean 'size'?"),
        ("[geometry]\nsize = 250", "r.toml: geometry.size = 250: expected a multiple of 32"),
        ("[decision]\nreview_rate = 1.5", "r.toml: decision.review_rate = 1.5: expected less than 1"),
        ("[decision]\nreject_rate = 0.5", "reject_rate = 0.5 must not exceed review_rate = 0.05"),
        ("[input]\ndepth = 12", "r.toml: input.depth = 12"),
        ("size = ", "r.toml: not TOML"),
        ("a = " + "[" * 5000, "r.toml: brackets nested too deeply"),
        ("seed = true", "seed = True: expected a valid integer"),
        ('[geometry]\nsize = "64"', "geometry.size = '64': expected a valid integer"),
        ("[geometry]\nsize = 64.0", "geometry.size = 64.0: expected a valid integer"),
        ("[geometry]\ntiles = 1", "geometry.tiles = 1: expected a valid boolean"),
        ('[data]\ngood = "train"', "data.good = 'train': expected a list, such as ['train']"),
        ("[geometry]\ncrop = [true, 0, 64, 64]", "geometry.crop.0 = True: expected a valid integer"),
        ("[geometry]\nignore = [[[0, nan], [9, 0], [9, 9]]]", "geometry.ignore.0.0.1 = nan: expected a finite number"),
        ("[geometry]\nignore = [[[0, 3e9], [9, 0], [9, 9]]]", "expected less than or equal to 1000000"),
        ("[geometry]\ninclude = [[[1, 1], [2, 2], [9, 9]]]", "geometry.include.0: polygon"),
        (
            "[geometry]\ninclude = [[[0.1, 0.1], [0.9, 0.1], [0.9, 0.9]]]",
            "include.0: polygon [[0.1, 0.1], [0.9, 0.1], [0.9, 0.9]] is smaller than one pixel; expected",
        ),
        (
            "[geometry]\nignore = [[[0, 0], [1, 0], [1, 1]]]",
            "ignore.0: polygon [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]",
        ),
        (
            "[geometry]\ninclude = [[0, 0], [10, 0], [10, 10]]",
            "is a single polygon; expected a list of polygons, each",
        ),
        (
            "[geometry]\ninclude = [10, 10, 50, 50]",
            "[10, 10, 50, 50] is a list of numbers; expected a list of",
        ),
        ("[geometry]\ninclude = [[0, 0, 10, 0, 10, 10]]", "[0, 0, 10, 0, 10, 10] is no polygon; expected a list of"),
        ("[geometry]\nregion = 'x'", "geometry.region: not a PNG picture as base64 text"),
        (
            "[geometry]\ninclude = 'roi.png'",
            "geometry.include: 'roi.png' is the path of a picture, which is allowed in a recipe file only",
        ),
        (
            '[data]\nimages = "C:\\Users\\x"',
            "In double quotes a backslash begins an escape: write paths",
        ),
        ('[data]\nimages = "C:\\temp"', "data.images = 'C:\\temp': contains a control character. In double quotes a"),
        ('[data]\ngroups = "\\bpart"', "data.groups = '\\x08part': contains a control character."),
        ('[decision]\nreview_rate = "0.05"', "decision.review_rate = '0.05': expected a valid number"),
        ("[decision]\nmin_area = -3", "decision.min_area"),
        ("[decision]\npixel_threshold = inf", "decision.pixel_threshold = inf: expected a finite number"),
        (
            'detector = "variation"',
            "r.toml: detector = 'variation': expected a section [detector] with keys",
        ),
        ("[decision]\nreview_threshold = 50\nreject_threshold = 10", "review_threshold = 50 must not exceed"),
    ],
)
def test_a_wrong_recipe_names_key_value_and_expectation(text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(text, "r.toml")
    assert message in str(caught.value)


def test_wrong_items_are_not_reported_as_a_list_that_is_too_short() -> None:
    class Listed(BaseModel):
        names: Annotated[tuple[Literal["a", "b"], ...], Field(strict=False, min_length=1)]

    with pytest.raises(RecipeError) as caught:
        validate(Listed, {"names": ["c"]}, "r.toml")
    assert "names.0 = 'c'" in str(caught.value) and "at least 1 item" not in str(caught.value)


def test_a_byte_order_mark_is_not_part_of_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_bytes("\ufeffseed = 3\n".encode())
    assert Recipe.load(tmp_path / "r.toml").seed == 3


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", None])
def test_a_recipe_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "r.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(RecipeError, match=r"r\.toml: cannot be read"):
        Recipe.load(file)


def test_a_folder_whose_name_is_no_valid_unicode_can_be_written() -> None:
    name = os.fsdecode(b"l\xff")
    recipe = Recipe.model_validate({"product": name, "data": {"images": name}})
    assert Recipe.parse(recipe.dump(), "again").product == "l?"
