"""Finds and reads recipes: the YAML files of a clone or of the installed package."""

from importlib.util import find_spec
from pathlib import Path

import yaml

FOLDER = "configs"
ENDINGS = (".yaml", ".yml")


def find_recipes() -> Path:
    """Returns the folder of the recipes: configs/ of the clone, or of the installed package `bothways`.

    Raises:
        FileNotFoundError: If neither exists.
    """
    beside = Path(__file__).resolve().parents[2] / FOLDER
    if beside.is_dir():
        return beside
    spec = find_spec("bothways")  # not of "bothways.configs", which would import bothways
    for folder in spec.submodule_search_locations or () if spec else ():
        if (Path(folder) / FOLDER).is_dir():
            return Path(folder) / FOLDER
    raise FileNotFoundError("Recipes: expected configs/ in the repository or an installed package; found none.")


def find_recipe(name: str, *, only_packaged: bool = False) -> Path:
    """Returns the path of a recipe; a name that begins with configs/ is found from any folder.

    Args:
        name: A path, or the name of a packaged recipe such as configs/demo/train.yaml.
        only_packaged: Ignore the current folder, which may have its own configs/.

    Raises:
        FileNotFoundError: If the file does not exist.
    """
    path = Path(name)
    if path.is_file() and not only_packaged:
        return path
    if path.parts[0] == FOLDER and (kept := find_recipes().joinpath(*path.parts[1:])).is_file():
        return kept
    raise FileNotFoundError(f"Recipe {path}: expected a YAML file; found none. The recipes are in configs/.")


def read_recipe(path: Path) -> dict:
    """Returns the keys and values of a recipe; a key without a value is left out, so that its default holds.

    Raises:
        ValueError: If the file is not YAML, or not a mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"Recipe {path}: expected YAML; found {error}.") from error
    if not isinstance(values, dict):
        raise ValueError(f"Recipe {path}: expected `key: value` lines; found a {type(values).__name__}.")
    return {key: value for key, value in values.items() if value is not None}
