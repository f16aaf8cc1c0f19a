"""Model cards: builds the README.md of a member, judge or base from the facts in its folder. Knows no weights.

Missing facts appear as "not recorded" or "not measured".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from jinja2 import UndefinedError
from markupsafe import Markup

from modeling.data.battles import TRAINED_ORIENTATIONS
from modeling.judging.loading import find_judge
from modeling.judging.member import ADAPTER_FILES, JUDGE_FILE, MEMBER_FILE, MERGED_FILE, read_json
from modeling.publishing.card_metadata import Licence, build_base_metadata, build_metadata, check_licence, find_licence
from modeling.publishing.limitations import count_languages, describe_cuts, describe_languages, describe_limitations
from modeling.publishing.markdown import fence, flatten_settings, remove_secrets, render
from modeling.runtime.files import write_json

TEMPLATE_FILE, BASE_TEMPLATE_FILE = (Path(__file__).with_name(f"{kind}_card_template.md") for kind in ("model", "base"))
EVALUATION_FILE, CARD_FILE = "evaluation.json", "README.md"
# Captions of the pictures that evaluation/plots.py draws, by file name.
FIGURES = {
    "reliability": "Calibration: how often answers won, by predicted probability",
    "position_bias": "Position bias: probability of the answer shown first",
    "languages": "Accuracy by language",
    "length_bias": "Length bias: predicted probability by length of the answers",
    "selective": "Accuracy on the most certain battles, by the share of battles kept",
}


# --- facts from folders -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CardMember:
    """The facts in a member's folder: `facts` is its member.json, `report` its evaluation.json."""

    name: str | None
    facts: dict
    base: str | None
    revision: str | None  # commit of a base on the Hub; None for a local base
    family: str  # the model type or the tokenizer class, if the folder names one
    merged: bool
    report: dict | None

    @property
    def hub_base(self) -> str | None:
        """The base's Hub id, or None for a local base."""
        # "../base" is a valid path and no valid id, but "outputs/base" is both: only a revision proves a Hub base.
        try:
            validate_repo_id(self.base or "/")
        except HFValidationError:
            return None
        return self.base if self.revision else None

    @property
    def origin(self) -> str | None:
        """The model that the base was made from, as quantize.py recorded it."""
        origin = self.facts["training"].get("base_made_from")
        return origin and remove_secrets(origin)

    @property
    def licence(self) -> Licence | None:
        """The licence that the base's name or origin points to, or the model type of merged weights."""
        return find_licence([self.hub_base or "", self.origin or "", self.family if self.merged else ""])

    @property
    def data(self) -> list[dict]:
        """`describe_source` of each training and evaluation source."""
        return self.facts["training"].get("data", [])

    @property
    def settings(self) -> list[tuple[str, str]]:
        """Settings of the run, except those that the card shows elsewhere."""
        shown_elsewhere = ("command", "data", "versions", "seconds")
        run = {name: value for name, value in self.facts["training"].items() if name not in shown_elsewhere}
        names = [name for name in ("dtype", "base_fingerprint", "encoding", "head") if name in self.facts]
        return list(flatten_settings({name: self.facts[name] for name in names} | run))

    @property
    def command(self) -> Markup | None:
        """The training command as a code block."""
        command = self.facts["training"].get("command")
        return command and fence(remove_secrets(command), "bash")


def read_card_member(folder: Path, name: str | None = None) -> CardMember:
    """Reads a member's recorded facts; only orientation and labels are required."""
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
    # A merged member has no adapter_config.json; its training facts still name the base.
    base = adapter.get("base_model_name_or_path") or facts["training"].get("base")
    family = model.get("model_type") or tokenizer.get("tokenizer_class") or ""
    return CardMember(
        name, facts, base and remove_secrets(base), adapter.get("revision"), family, bool(model), report or None
    )


# --- cards ------------------------------------------------------------------------------------------------------------


def write_card(folder: Path, report: dict | None = None) -> None:
    """Writes a member's README.md, and with a report also evaluation.json and figures/, which the card then shows."""
    if report is not None:
        # Imports matplotlib, which loading and publishing do not need.
        from modeling.evaluation.plots import draw_figures

        write_json(folder / EVALUATION_FILE, report)
        (folder / "figures").mkdir(exist_ok=True)
        draw_figures(report, folder / "figures")
    (folder / CARD_FILE).write_text(build_member_card(folder), encoding="utf-8")


def build_member_card(folder: Path, repo: str | None = None, licence: str | None = None) -> str:
    """Returns the README.md of a member: metadata block and Markdown.

    Args:
        folder: A member, with evaluation.json and figures/ if it was evaluated.
        repo: Hub id of the repository; without one the card's commands name a folder.
        licence: The Hub's name of the licence that the publisher chose.

    Raises:
        FileNotFoundError: If there is no member.json.
        ValueError: If a file has another format, `repo` is not a valid id, or a base's terms leave no choice.
    """
    member = read_card_member(folder)
    return _render_card(folder, repo, [member], member.report, judge=None, licence=licence)


def build_judge_card(folder: Path, repo: str | None = None, licence: str | None = None) -> str:
    """Returns the README.md of a judge and all its members. Args and errors as for `build_member_card`."""
    judge = read_json(folder / JUDGE_FILE, "Card")
    members = [read_card_member(path, name) for name, path in find_judge([str(folder)])[0]]
    report = read_json(folder / EVALUATION_FILE, "Card") if (folder / EVALUATION_FILE).is_file() else None
    return _render_card(folder, repo, members, report, judge, licence)


def build_base_card(folder: Path, repo: str) -> str:
    """Returns the README.md of a base: its origin, quantisation and licence."""
    config = read_json(folder / MERGED_FILE, "Card")
    origin = remove_secrets(config.get("made_from") or "")
    licence = find_licence([origin, config.get("model_type", "")])
    return render(
        BASE_TEMPLATE_FILE.read_text(encoding="utf-8"),
        metadata=Markup(build_base_metadata(origin, "quantization_config" in config, licence).to_yaml()),
        repo=Markup(repo),
        origin=origin or None,
        config=config,
        licence=licence and {"name": licence.name, "link": Markup(licence.link), "binds": bool(licence.hub_name)},
    )


def _render_card(
    folder: Path,
    repo: str | None,
    members: list[CardMember],
    report: dict | None,
    judge: dict | None,
    licence: str | None,
) -> str:
    """Fills the template of a member's or judge's card."""
    check_licence(licence, [member.licence for member in members])
    if repo is not None:
        validate_repo_id(repo)
    kind = "judge" if judge else "member"
    title = repo or f"Bothways {kind} {'+'.join(member.facts['orientation'] for member in members)}"
    try:
        train_data = list_data(members, "train")
        return render(
            TEMPLATE_FILE.read_text(encoding="utf-8"),
            metadata=Markup(
                build_metadata(
                    title,
                    bases=[member.hub_base for member in members],
                    licences=[member.licence for member in members],
                    chosen=licence,
                    has_adapter=not all(member.merged for member in members),
                    train_data=train_data,
                    report=report,
                ).to_yaml()
            ),
            kind=kind,
            chosen=licence,
            title=title,
            repo=Markup(repo or f"path/to/this/{kind}"),
            both=bool(judge) and judge.get("readings") == "both",
            calibration=judge and judge.get("calibration"),
            members=members,
            data=list_data(members),
            report=report,
            figures={name: FIGURES[name] for name in FIGURES if (folder / "figures" / f"{name}.png").is_file()},
            limitations=[
                *describe_languages(count_languages(train_data)),
                *describe_limitations(report),
                *describe_cuts([member.facts.get("encoding", {}) for member in members], report),
            ],
            bases=list_bases(members),
        )
    # The files are free-form JSON that the template looks into, so a wrong format can fail in any of these ways.
    except (AttributeError, KeyError, TypeError, ValueError, UndefinedError) as error:
        raise ValueError(
            f"Card {folder}: expected {MEMBER_FILE} and {EVALUATION_FILE} as train.py and evaluate.py write them; "
            f"found another format ({error!r}). Write them again."
        ) from error


def list_data(members: Sequence[CardMember], role: str | None = None) -> list[dict]:
    """Returns the data sources of all members without repetition, optionally only those with one role."""
    rows: list[dict] = []
    for row in (row for member in members for row in member.data if role in (None, row["role"])):
        if row not in rows:
            rows.append(row)
    return rows


def list_bases(members: Sequence[CardMember]) -> list[dict]:
    """Returns each base once, with its licence as far as it is known."""
    rows = []
    for member in members:
        licence = member.licence
        row = {
            "name": member.base,
            "origin": member.origin,
            "hub": member.hub_base,
            "revision": member.revision,
            "fingerprint": member.facts.get("base_fingerprint"),
            "licence": licence and licence.name,
            "link": licence and Markup(licence.link),
            "binds": bool(licence and licence.hub_name),
            "looks_gemma": not licence and "gemma" in member.family.lower(),  # a hint: others use Gemma's tokenizer too
        }
        if row not in rows:
            rows.append(row)
    return rows
