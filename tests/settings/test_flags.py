"""The Trainer's flags, read from transformers' source, are those of its class."""

from dataclasses import fields

from transformers import TrainingArguments

from modeling.settings.flags import PRECISION_FLAGS, REFUSED_FLAGS, read_trainer_flags


def test_the_trainers_flags_are_those_of_the_installed_transformers():
    read = {flag.name: flag for flag in read_trainer_flags()}
    assert list(read) == [field.name for field in fields(TrainingArguments) if field.init]
    for field in fields(TrainingArguments):
        if isinstance(field.default, int | float | bool):
            assert read[field.name].default == field.default
        if field.name not in ("output_dir", *PRECISION_FLAGS, *REFUSED_FLAGS):
            assert read[field.name].help == field.metadata["help"].replace("%%", "%")
    assert read["per_device_train_batch_size"].kind is int and read["do_train"].kind is bool
    assert "adamw_8bit" in read["optim"].choices and read["save_strategy"].choices == ("no", "steps", "epoch", "best")
