"""A card's metadata block, which the Hub reads: languages, licence, base model, data sets and results.

Takes plain values; it must not know folders or the card's text.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from huggingface_hub import EvalResult, ModelCardData

from modeling.publishing.limitations import count_languages
from modeling.publishing.markdown import escape_text, format_estimate

# ISO 639-1 codes; names as in the demo's and WSDM's battles.
LANGUAGES = """
af Afrikaans, am Amharic, ar Arabic, az Azerbaijani, be Belarusian, bg Bulgarian, bn Bengali, bs Bosnian, ca Catalan,
cs Czech, cy Welsh, da Danish, de German, el Greek, en English, eo Esperanto, es Spanish, et Estonian, eu Basque,
fa Persian, fi Finnish, fr French, ga Irish, gl Galician, gu Gujarati, he Hebrew, hi Hindi, hr Croatian, hu Hungarian,
hy Armenian, id Indonesian, is Icelandic, it Italian, ja Japanese, ka Georgian, kk Kazakh, km Khmer, kn Kannada,
ko Korean, la Latin, lt Lithuanian, lv Latvian, mk Macedonian, ml Malayalam, mn Mongolian, mr Marathi, ms Malay,
my Burmese, ne Nepali, nl Dutch, no Norwegian, pa Punjabi, pl Polish, ps Pashto, pt Portuguese, ro Romanian,
ru Russian, si Sinhala, sk Slovak, sl Slovenian, so Somali, sq Albanian, sr Serbian, sv Swedish, sw Swahili, ta Tamil,
te Telugu, tg Tajik, th Thai, tl Tagalog, tr Turkish, uk Ukrainian, ur Urdu, uz Uzbek, vi Vietnamese, zh Chinese
"""
CODES = {name: code for code, name in (entry.split() for entry in LANGUAGES.split(","))}
# Our metrics and their names on the Hub.
METRICS = {"accuracy": "accuracy", "log_loss": "log_loss", "brier": "brier_score", "ece": "ece", "auc": "roc_auc"}
ORIGIN_ON_HUB = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)@[0-9a-f]{40}")
# USER/NAME[@REVISION][:SPLIT], but no file here: "data/train.jsonl" has the form of a Hub id too.
HUB_DATASET = re.compile(
    r"(?!.*\.(parquet|csv|jsonl)$)(?P<id>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.-]+))?(:[\w.-]+)?", re.ASCII
)


# --- licences ---------------------------------------------------------------------------------------------------------


class Licence(NamedTuple):
    """A licence that a base's name points to. `hub_name` is set if it also binds what is made from the base."""

    pattern: str
    name: str
    link: str
    hub_name: str | None


# The same maker licenses other sizes and versions differently, so the patterns are narrow.
LLAMA = "Llama {} Community License"
LICENCES = (
    Licence(r"gemma(?!-?4)", "Gemma Terms of Use", "https://ai.google.dev/gemma/terms", "gemma"),
    Licence(r"deepseek-r1-distill-qwen", "MIT", "https://opensource.org/license/mit", None),
    Licence(
        r"qwen2(\.5)?-(0\.5|1\.5|7)b|qwen2\.5-(14|32)b|smollm",
        "Apache-2.0",
        "https://www.apache.org/licenses/LICENSE-2.0",
        None,
    ),
    Licence(r"(^|[/-])llama-3\.3-", LLAMA.format("3.3"), "https://www.llama.com/llama3_3/license/", "llama3.3"),
    Licence(r"(^|[/-])llama-3\.2-", LLAMA.format("3.2"), "https://www.llama.com/llama3_2/license/", "llama3.2"),
    Licence(r"(^|[/-])llama-3\.1-", LLAMA.format("3.1"), "https://www.llama.com/llama3_1/license/", "llama3.1"),
    Licence(r"(^|[/-])llama-3-", LLAMA.format("3"), "https://www.llama.com/llama3/license/", "llama3"),
)


def find_licence(names: Iterable[str]) -> Licence | None:
    """Returns the first licence that one of the names points to: a Hub id, a base's origin, or a model type."""
    return next((known for known in LICENCES for name in names if re.search(known.pattern, name, re.IGNORECASE)), None)


def check_licence(chosen: str | None, licences: Iterable[Licence | None]) -> None:
    """Raises a ValueError if a publisher chose another licence than one that a base imposes."""
    for licence in licences:
        if chosen and licence and licence.hub_name not in (None, chosen):
            raise ValueError(
                f"--license {chosen}: expected {licence.hub_name}, because the {licence.name} bind what comes from the "
                "base; found another. Leave it out."
            )


# --- metadata ---------------------------------------------------------------------------------------------------------


def build_metadata(
    title: str,
    *,
    bases: Iterable[str | None],
    licences: Iterable[Licence | None],
    has_adapter: bool,
    train_data: Sequence[dict],
    report: dict | None,
    chosen: str | None = None,
) -> ModelCardData:
    """Returns the metadata of a member or judge, from facts that the Hub can look up; local files are left out.

    Args:
        title: The card's title; its last part names the model in the results.
        bases: Hub id of each member's base, None for a local one.
        licences: Licence of each member's base, None if unknown.
        has_adapter: Whether any member is an adapter rather than merged weights.
        train_data: `describe_source` of each training source.
        report: evaluation.json, if there is one.
        chosen: Licence that the publisher chose, by the Hub's name.
    """
    codes = {CODES.get(name, name) for name in count_languages(train_data)}
    found = list(dict.fromkeys(base for base in bases if base))
    binding = sorted({licence.hub_name for licence in licences if licence and licence.hub_name})
    sources = (HUB_DATASET.fullmatch(row["source"]) for row in train_data)
    results = build_results(report) if report else []
    return ModelCardData(
        language=sorted(codes & set(CODES.values())) or None,
        # Under a permissive licence the adapter's author chooses one for the adapter; which, we cannot know.
        license=(binding if len(binding) > 1 else binding[0]) if binding else chosen,
        # Not "peft": the Hub would show code that puts a random head on the adapter.
        library_name="bothways",
        pipeline_tag="text-classification",
        base_model=(found if len(found) > 1 else found[0]) if found else None,
        base_model_relation="adapter" if found else None,
        datasets=list(dict.fromkeys(source["id"] for source in sources if source)) or None,
        metrics=[result.metric_type for result in results] or None,
        tags=["bothways", "preference", "pairwise", *(["lora"] if has_adapter else [])],
        model_name=title.rpartition("/")[2] if results else None,
        eval_results=results or None,
    )


def build_results(report: dict) -> list[EvalResult]:
    """Returns the measured metrics for the Hub's model-index, with their intervals in name and arguments."""
    source = report.get("data", {}).get("battles", {})
    name = HUB_DATASET.fullmatch(source.get("name") or "")
    data = {
        "dataset_type": name["id"] if name else "unknown",  # the field is required, and is a Hub id where there is one
        "dataset_revision": name and name["revision"],
        "dataset_name": f"{escape_text(source.get('name')).unescape()}, {report['battles']} battles",
    }
    results = []
    for metric, hub_name in METRICS.items():
        estimate = report.get(metric)
        if estimate and estimate["value"] is not None:
            text = f"{metric.replace('_', ' ')}, {estimate['count']} battles, {report['confidence']:.0%} interval"
            results.append(
                EvalResult(
                    task_type="text-classification",
                    task_name="Which of two answers people prefer",
                    metric_type=hub_name,
                    metric_value=estimate["value"],
                    metric_name=f"{text} {format_estimate(estimate).partition(' ')[2]}",
                    metric_args={name: estimate[name] for name in ("low", "high", "count")},
                    **data,
                )
            )
    return results


def build_base_metadata(origin: str, quantised: bool, licence: Licence | None) -> ModelCardData:
    """Returns the metadata of a base that was made from `origin`, a Hub id with its commit or any other name."""
    on_hub = ORIGIN_ON_HUB.fullmatch(origin)
    return ModelCardData(
        license=licence and (licence.hub_name or licence.name.lower()),  # the Hub writes "MIT" as mit
        library_name="bothways",
        base_model=on_hub and on_hub["id"],
        base_model_relation="quantized" if on_hub and quantised else None,
        tags=["bothways", "base"],
    )
