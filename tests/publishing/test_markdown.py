"""Text from files renders literally and reveals no folder or token of the machine."""

import pytest
from markupsafe import Markup

from modeling.publishing.markdown import (
    escape_text,
    fence,
    flatten_settings,
    format_counts,
    format_duration,
    format_estimate,
    remove_secrets,
    render,
)


@pytest.mark.parametrize(
    "text, left",
    [
        ("--train_file /home/me/data/x.parquet", "--train_file x.parquet"),
        ("--train_file=/home/me/x.parquet", "--train_file=x.parquet"),
        ("'/home/me/my data/x.parquet'", "'my data/x.parquet'"),
        ("~/x.parquet ~me/y/z.csv", "x.parquet z.csv"),
        (r"C:\Users\me\x.csv D:/y.csv", "x.csv y.csv"),
        ("file:///srv/x.jsonl", "x.jsonl"),
        ("data/x.jsonl ../base me/base@main", "data/x.jsonl ../base me/base@main"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("1 / 2 and/or", "1 / 2 and/or"),
        ("--hub_token hf_abcdefghijkl", "--hub_token (removed)"),
        ("--hub_token=secret --seed 1", "--hub_token=(removed) --seed 1"),
        ("hf_abcdefghijklmnop", "(removed)"),
        ("--tokens_per_batch 8192", "--tokens_per_batch 8192"),
    ],
)
def test_absolute_folders_and_tokens_are_removed(text, left):
    assert remove_secrets(text) == left


def test_text_without_markup_is_unchanged():
    text = "train.jsonl, 日本語 (a-b), 12:30; owner/name:split #1 50% 'x' é"
    assert escape_text(text) == text and escape_text(None) == "not recorded" and escape_text(3) == "3"


@pytest.mark.parametrize(
    "seconds, said",
    [(None, None), (0.4, "0 s"), (119.4, "119 s"), (150, "2 min"), (3599, "1 h 0 min"), (90_000, "25 h 0 min")],
)
def test_durations_are_given_in_hours_and_minutes(seconds, said):
    assert format_duration(seconds) == said


def test_counts_are_listed_largest_first_and_the_rest_as_a_number():
    assert format_counts({"x": 1, "b": 2, "a": 2}) == "a 2, b 2, x 1" and format_counts({}) is None
    assert format_counts({str(at): 9 - at for at in range(8)}) == "0 9, 1 8, 2 7, 3 6, 4 5, 5 4 and 2 more"


def test_a_fence_is_longer_than_any_run_of_backticks_in_its_code():
    assert fence("a `````` b", "bash") == "```````bash\na `````` b\n```````" and fence("a") == "```\na\n```"


def test_estimates_show_their_interval_or_not_measured():
    ends = {"low": -0.1, "high": 0.25}
    assert format_estimate({"value": 0.0625, **ends}) == "0.062 [-0.100, 0.250]"
    assert format_estimate({"value": 1, "low": None, "high": None}) == "1.000 [no interval]"
    assert format_estimate({"value": None, **ends}) == format_estimate(None) == "not measured"


def test_settings_are_flat_text_without_tokens():
    values = {"a": {"b": True, "hub_token": "x"}, "token": "y", "c": [1, None, "/srv/z"], "num_tokens": 3}
    assert dict(flatten_settings(values)) == {"a.b": "true", "c": "1, none, z", "num_tokens": "3"}


def test_every_value_that_a_template_prints_is_escaped_except_markup():
    template = (
        "{% macro twice(x) %}{{ x }}{{ x }}{% endmacro %}{{ twice(text) }} {{ safe }} {{ [text, text]|join(', ') }}"
    )
    assert render(template, text="<b", safe=Markup("<i>")) == "&#60;b&#60;b <i> &#60;b, &#60;b\n"
