"""Model cards: the README.md of a member or a judge, from the facts in its folder. Knows no weights.

What no file says is called "not recorded" or "not measured"; what follows from the figures, such as an accuracy that
may be chance, is said in words.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from jinja2 import UndefinedError
from markupsafe import Markup

from modeling.data.battles import TRAINED_ORIENTATIONS
from modeling.judging.loading import find_judge
from modeling.judging.member import ADAPTER_FILES, JUDGE_FILE, MEMBER_FILE, MERGED_FILE, read_json
from modeling.publishing.card_metadata import CODES, find_licence
from modeling.publishing.limitations import count_languages, describe_cuts, describe_languages, describe_limitations
from modeling.publishing.markdown import conceal, escape_text, fence, flatten_settings, format_estimate, render
from modeling.runtime.files import write_json

TEMPLATE_FILE, BASE_TEMPLATE_FILE = (Path(__file__).with_name(f"{kind}_card_template.md") for kind in ("model", "base"))
EVALUATION_FILE, CARD_FILE = "evaluation.json", "README.md"
FIGURES = {
    "reliability": "Calibration: how often the answer that was given a probability won",
    "position_bias": "Position bias: the probability of the answer that is read first",
    "languages": "Accuracy in each language",
    "length_bias": "Probability against the lengths of the answers",
    "selective": "Accuracy on the share of battles that it is surest of",
}
METRICS = {"accuracy": "accuracy", "log_loss": "log_loss", "brier": "brier_score", "ece": "ece", "auc": "roc_auc"}
ORIGIN_ON_HUB = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)@[0-9a-f]{40}")
HUB_DATASET = re.compile(
    r"(?!.*\.(parquet|csv|jsonl)$)(?P<id>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.-]+))?(:[\w.-]+)?", re.ASCII
)


# --- facts out of folders ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CardMember:
    """What a card says of a member: `facts` is its member.json, `report` its evaluation.json."""

    name: str | None
    facts: dict
    base: str | None
    revision: str | None  # of a base on the Hub; one in a folder has none
    family: str  # where the folder tells: the model's type, or the tokenizer's class
    merged: bool
    report: dict | None

    @property
    def hub_base(self) -> str | None:
        """The base's id, if it is on the Hub."""
        try:
            validate_repo_id(self.base or "/")
        except HFValidationError:
            return None
        return self.base if self.revision else None

    @property
    def origin(self) -> str | None:
        """What the base was made from, as quantize.py noted it."""
        origin = self.facts["training"].get("base_made_from")
        return origin and conceal(origin)

    @property
    def licence(self) -> tuple | None:
        """What the base's names, or a merged model's own type, say of the licence."""
        return find_licence([self.hub_base or "", self.origin or "", self.family if self.merged else ""])

    @property
    def data(self) -> list[dict]:
        """What `describe_source` said of each source."""
        return self.facts["training"].get("data", [])

    @property
    def settings(self) -> list[tuple[str, str]]:
        """All that decided the run, but for what the card says elsewhere."""
        apart = ("command", "data", "versions", "seconds")
        run = {name: value for name, value in self.facts["training"].items() if name not in apart}
        names = [name for name in ("dtype", "base_fingerprint", "encoding", "head") if name in self.facts]
        return list(flatten_settings({name: self.facts[name] for name in names} | run))

    @property
    def command(self) -> Markup | None:
        """The training command as a code block."""
        command = self.facts["training"].get("command")
        return command and fence(conceal(command), "bash")


def read_card_member(folder: Path, name: str | None = None) -> CardMember:
    """A member's facts as far as they are recorded; orientation and labels must be."""
    facts = {"training": {}, **read_json(folder / MEMBER_FILE, "Card")}
    if facts.get("orientation") not in TRAINED_ORIENTATIONS or not isinstance(facts.get("labels"), list):
        found = f"{facts.get('orientation')!r} and {facts.get('labels')!r}"
        raise ValueError(
            f"Card {folder}: expected orientation and labels in {MEMBER_FILE}; found {found}. Save it again."
        )
    adapter, tokenizer, model, report = (
        read_json(folder / file, "Card") if (folder / file).is_file() else {}
        for file in (ADAPTER_FILES[0], "tokenizer_config.json", MERGED_FILE, EVALUATION_FILE)
    )
    base = adapter.get("base_model_name_or_path") or facts["training"].get("base")
    family = model.get("model_type") or tokenizer.get("tokenizer_class") or ""
    return CardMember(name, facts, base and conceal(base), adapter.get("revision"), family, bool(model), report or None)


# --- cards ------------------------------------------------------------------------------------------------------------


def write_card(folder: Path, report: dict | None = None) -> None:
    """Writes, into a member folder, README.md and, where there is a report, evaluation.json and figures/ before it."""
    if report is not None:
        from modeling.evaluation.plots import (
            draw_figures,  # matplotlib, which those who only load or publish do without
        )

        write_json(folder / EVALUATION_FILE, report)
        (folder / "figures").mkdir(exist_ok=True)
        draw_figures(report, folder / "figures")
    (folder / CARD_FILE).write_text(build_member_card(folder), encoding="utf-8")


def build_member_card(folder: Path, repo: str | None = None) -> str:
    """README.md of a member folder: metadata block and markdown.

    Args:
        folder: A member, with evaluation.json and figures/ if it was evaluated.
        repo: The Hub id it is published under; without one the card's commands name a folder.

    Raises:
        FileNotFoundError: If there is no member.json.
        ValueError: If a file is not of its format, or `repo` is no id.
    """
    member = read_card_member(folder)
    return _render_card(folder, repo, [member], member.report, judge=None)


def build_judge_card(folder: Path, repo: str | None = None) -> str:
    """README.md of a judge folder, its members together. Arguments and errors as for `build_member_card`."""
    judge = read_json(folder / JUDGE_FILE, "Card")
    members = [read_card_member(path, name) for name, path in find_judge([str(folder)])[0]]
    report = read_json(folder / EVALUATION_FILE, "Card") if (folder / EVALUATION_FILE).is_file() else None
    return _render_card(folder, repo, members, report, judge)


def build_base_card(folder: Path, repo: str) -> str:
    """README.md of a base: what it was made from, how it is quantised, and the licence that goes with it."""
    config = read_json(folder / MERGED_FILE, "Card")
    origin = conceal(config.get("made_from") or "")
    found = find_licence([origin, config.get("model_type", "")])
    on_hub = ORIGIN_ON_HUB.fullmatch(origin)
    metadata = ModelCardData(
        license=found and found[3],
        library_name="bothways",
        base_model=on_hub and on_hub["id"],
        base_model_relation="quantized" if on_hub and "quantization_config" in config else None,
        tags=["bothways", "base"],
    )
    return render(
        BASE_TEMPLATE_FILE.read_text(encoding="utf-8"),
        metadata=Markup(metadata.to_yaml()),
        repo=Markup(repo),
        origin=origin or None,
        config=config,
        licence=found and {"name": found[1], "link": Markup(found[2]), "binds": bool(found[3])},
    )


def _render_card(
    folder: Path, repo: str | None, members: list[CardMember], report: dict | None, judge: dict | None
) -> str:
    if repo is not None:
        validate_repo_id(repo)
    kind = "judge" if judge else "member"
    title = repo or f"Bothways {kind} {'+'.join(member.facts['orientation'] for member in members)}"
    try:
        return render(
            TEMPLATE_FILE.read_text(encoding="utf-8"),
            metadata=Markup(build_metadata(title, members, report).to_yaml()),
            kind=kind,
            title=title,
            repo=Markup(repo or f"path/to/this/{kind}"),
            both=bool(judge) and judge.get("readings") == "both",
            calibration=judge and judge.get("calibration"),
            members=members,
            data=list_data(members),
            report=report,
            figures={name: FIGURES[name] for name in FIGURES if (folder / "figures" / f"{name}.png").is_file()},
            limits=[
                *describe_languages(count_languages(list_data(members, "train"))),
                *describe_limitations(report),
                *describe_cuts([member.facts.get("encoding", {}) for member in members], report),
            ],
            bases=list_bases(members),
        )
    except (AttributeError, KeyError, TypeError, ValueError, UndefinedError) as error:
        raise ValueError(
            f"Card {folder}: expected {MEMBER_FILE} and {EVALUATION_FILE} as train.py and evaluate.py write them; "
            f"found something else ({error!r}). Write them again."
        ) from error


def list_data(members: Sequence[CardMember], role: str | None = None) -> list[dict]:
    """The sources of all members, those of one role if given; one that several share stands once."""
    rows: list[dict] = []
    for row in (row for member in members for row in member.data if role in (None, row["role"])):
        if row not in rows:
            rows.append(row)
    return rows


# --- what the Hub reads -----------------------------------------------------------------------------------------------


def build_metadata(title: str, members: Sequence[CardMember], report: dict | None) -> ModelCardData:
    """The metadata block, from facts that the Hub can look up: files here and unknown languages are left out."""
    codes = {CODES.get(name, name) for name in count_languages(list_data(members, "train"))}
    bases = list(dict.fromkeys(member.hub_base for member in members if member.hub_base))
    binding = sorted({member.licence[3] for member in members if member.licence and member.licence[3]})
    names = (HUB_DATASET.fullmatch(row["source"]) for row in list_data(members, "train"))
    results = build_results(report) if report else []
    return ModelCardData(
        language=sorted(codes & set(CODES.values())) or None,
        # A permissive base leaves its adapters' licence to whoever trained them: not known here.
        license=(binding if len(binding) > 1 else binding[0]) if binding else None,
        # Not peft, for which the Hub shows code that would put a random head on the adapter.
        library_name="bothways",
        pipeline_tag="text-classification",
        base_model=(bases if len(bases) > 1 else bases[0]) if bases else None,
        base_model_relation="adapter" if bases else None,
        datasets=list(dict.fromkeys(name["id"] for name in names if name)) or None,
        metrics=[result.metric_type for result in results] or None,
        tags=["bothways", "preference", "pairwise", *([] if all(m.merged for m in members) else ["lora"])],
        model_name=title.rpartition("/")[2] if results else None,
        eval_results=results or None,
    )


def build_results(report: dict) -> list[EvalResult]:
    """The figures that were measured, for the model-index; their intervals are in names and arguments."""
    source = report.get("data", {}).get("battles", {})
    name = HUB_DATASET.fullmatch(source.get("name") or "")
    data = {
        "dataset_type": name["id"] if name else "unknown",  # the Hub's name for a data set that it does not hold
        "dataset_revision": name and name["revision"],
        "dataset_name": f"{escape_text(source.get('name')).unescape()}, {report['battles']} battles",
    }
    results = []
    for figure, metric in METRICS.items():
        estimate = report.get(figure)
        if estimate and estimate["value"] is not None:
            text = f"{figure.replace('_', ' ')}, {estimate['count']} battles, {report['confidence']:.0%} interval"
            results.append(
                EvalResult(
                    task_type="text-classification",
                    task_name="Which of two answers people prefer",
                    metric_type=metric,
                    metric_value=estimate["value"],
                    metric_name=f"{text} {format_estimate(estimate).partition(' ')[2]}",
                    metric_args={name: estimate[name] for name in ("low", "high", "count")},
                    **data,
                )
            )
    return results


# --- what follows from the facts --------------------------------------------------------------------------------------


def list_bases(members: Sequence[CardMember]) -> list[dict]:
    """Each base once, with what is known of its licence."""
    rows = []
    for member in members:
        found = member.licence
        row = {
            "name": member.base,
            "origin": member.origin,
            "hub": member.hub_base,
            "revision": member.revision,
            "fingerprint": member.facts.get("base_fingerprint"),
            "licence": found and found[1],
            "link": found and Markup(found[2]),
            "binds": bool(found and found[3]),
            "looks_gemma": not found and "gemma" in member.family.lower(),  # a tokenizer is a hint and no proof
        }
        if row not in rows:
            rows.append(row)
    return rows
