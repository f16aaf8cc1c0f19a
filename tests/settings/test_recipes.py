"""Recipes are found from any folder, and each one in configs/ parses for its script."""

import pytest

from modeling.settings import recipes
from modeling.settings.recipes import find_recipes
from tests.helpers import REPOSITORY
from tests.settings.commands import USERS_FLAGS, parse

RECIPES = sorted(
    path for path in REPOSITORY.glob("configs/*/*.yaml") if path.parent.name not in ("accelerate", "study")
)


def test_a_recipe_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse("train", "configs/demo/train.yaml", "--orientation", "ab") is not None
    assert parse("quantize")[0].output_dir == "outputs/demo/base"  # which stays in the current folder


def test_recipes_of_an_installed_package_are_found_without_importing_it(tmp_path, monkeypatch):
    (tmp_path / "bothways" / "configs" / "demo").mkdir(parents=True)
    (tmp_path / "bothways" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(recipes, "__file__", str(tmp_path / "elsewhere" / "modeling" / "recipes.py"))
    assert find_recipes() == tmp_path / "bothways" / "configs"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_recipe_parses_for_its_verb(recipe):
    flags = USERS_FLAGS.get(recipe.stem, "").split()
    if "\norientation:" in recipe.read_text(encoding="utf-8"):  # not left to the user
        flags = flags[flags.index("--orientation") + 2 :]
    assert parse(recipe.stem, str(recipe), *flags)


def test_gemma2_recipe_has_the_seeds_numbers():
    recipe = str(REPOSITORY / "configs/gemma2-9b/train.yaml")
    arguments, training = parse("train", recipe, *USERS_FLAGS["train"].split())
    expected = {"max_length": 2200, "lora_r": 64, "lora_alpha": 4, "lora_dropout": 0.05, "head_dropout": 0.1}
    expected |= {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "num_train_epochs": 1}
    expected |= {"learning_rate": 2e-4, "lr_scheduler_type": "linear", "warmup_steps": 0.025, "optim": "adamw_8bit"}
    expected |= {"weight_decay": 0, "max_grad_norm": 1, "label_smoothing_factor": 0, "dtype": "auto", "seed": 0xFACED}
    found = vars(arguments) | vars(training)
    assert {name: found[name] for name in expected} == expected
