"""Recipes: where the YAML files of a clone or an installed package are, and what one of them says."""

from importlib.util import find_spec
from pathlib import Path

import yaml

FOLDER = "configs"
ENDINGS = (".yaml", ".yml")


def find_recipes() -> Path:
    """The folder of the recipes: the repository's, or that of the installed package `bothways.configs`.

    Raises:
        FileNotFoundError: If there is neither.
    """
    beside = Path(__file__).resolve().parents[2] / FOLDER
    if beside.is_dir():
        return beside
    spec = find_spec("bothways")  # not of bothways.configs, for which bothways would be imported
    for folder in spec.submodule_search_locations or () if spec else ():
        if (Path(folder) / FOLDER).is_dir():
            return Path(folder) / FOLDER
    raise FileNotFoundError("Recipes: expected configs/ in the repository or an installed package; found none.")


def find_recipe(name: str, *, only_packaged: bool = False) -> Path:
    """The path of a recipe; one that begins with configs/ is found from any folder.

    Args:
        name: As it was given.
        only_packaged: Leave the current folder aside, which may have a configs/ of its own.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    path = Path(name)
    if path.is_file() and not only_packaged:
        return path
    if path.parts[0] == FOLDER and (kept := find_recipes().joinpath(*path.parts[1:])).is_file():
        return kept
    raise FileNotFoundError(f"Recipe {path}: expected a YAML file; found none. The recipes stand in configs/.")


def read_recipe(path: Path) -> dict:
    """The keys and values of a recipe, those without a value left out.

    Raises:
        ValueError: If the file is not YAML of that form.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"Recipe {path}: expected YAML; found {error}.") from error
    if not isinstance(values, dict):
        raise ValueError(f"Recipe {path}: expected `key: value` lines; found a {type(values).__name__}.")
    return {key: value for key, value in values.items() if value is not None}
