"""A loaded member, and the check of its canary battles. It does not know where members come from."""

from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel
from tqdm.auto import tqdm

from modeling.encoding.encoder import BattleEncoder
from modeling.judging.canaries import replay_canaries
from modeling.judging.member import CANARIES_FILE, MemberFacts, read_json
from modeling.network.classifier import PreferenceMixin
from modeling.runtime.logs import build_logger
from modeling.runtime.progress import describe_step

logger = build_logger(__name__)


@dataclass(frozen=True)
class Member:
    """A loaded member. Members on the same base share its weights, so call `activate` before each use."""

    name: str
    adapter: str | None  # PEFT's name for it; None if it is merged into the weights
    facts: MemberFacts
    model: PeftModel | PreferenceMixin
    encoder: BattleEncoder
    fingerprint: str
    folder: Path
    dtype: str  # the precision it reads in, which may differ from the one it was trained in
    expanded: bool = False  # its base's quantised weights were expanded; a merged adapter has plain weights anyway

    def activate(self) -> PeftModel | PreferenceMixin:
        """The shared model with this member's adapter and head active, in eval mode."""
        if self.adapter is not None:
            self.model.set_adapter(self.adapter, inference_mode=True)
        return self.model.eval()


def check_canaries(member: Member, skip: bool, bar: tqdm) -> None:
    """Replays a member's canary battles and logs the largest change; an error if it is beyond the tolerance."""
    describe_step(bar, f"Checking {member.name}")
    canaries = read_json(member.folder / CANARIES_FILE, "Judge")
    if skip or not canaries.get("battles", True):
        reason = "--skip_probes" if skip else "training stopped before they were recorded"
        logger.warning(f"{member.name}: its canary battles are not replayed ({reason}), so a change goes unnoticed")
        return
    where, precisions = f"Judge {member.folder}", (member.dtype, member.facts.dtype)
    change = replay_canaries(where, member.activate(), member.encoder, canaries, *precisions)
    logger.info(f"{member.name}: canary probabilities changed by at most {change:.2g} since it was saved")
    bar.update()
