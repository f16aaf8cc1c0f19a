"""Chooses the battles that people should label next, writes them for a labelling tool, and reads the votes back.

python scripts/select.py                                          # configs/demo/select.yaml
python scripts/select.py --battles pool.parquet --predictions p/predictions.parquet --num_battles 500 \
    --format labelstudio --output_dir outputs/next
python scripts/select.py --battles pool.parquet --annotations ann.csv bob.csv --output_dir outputs/labelled
"""

from importlib.util import find_spec

if find_spec("modeling") is None:
    raise SystemExit("Bothways is not installed in this Python: run `make install`, then use .venv/bin/python.")

from modeling.runtime.startup import run_script
from modeling.settings.parsing import parse_arguments
from modeling.settings.reading_arguments import SelectArguments


def main() -> None:
    (arguments,) = parse_arguments(SelectArguments, verb="select")
    # Imported here because torch and transformers take seconds; a mistake on the command line is reported before that.
    from accelerate import PartialState

    from modeling.data.battles import load_battles
    from modeling.data.outcomes import WITH_TIE
    from modeling.judging.labelling import choose_battles, read_back

    state = PartialState(cpu=arguments.use_cpu)
    battles = load_battles(arguments.battles, labels=WITH_TIE, **arguments.row_policy)
    if arguments.annotations:
        if state.is_main_process:
            read_back(arguments, battles)
    else:
        choose_battles(arguments, battles, state.is_main_process)


if __name__ == "__main__":
    run_script(main)
