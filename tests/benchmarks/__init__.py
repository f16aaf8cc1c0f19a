from modeling.judging.member import fingerprint_member, read_member
from modeling.runtime.paths import DEFAULT_MEMBER


def describe_default_judge() -> dict[str, str]:
    """The members of the packaged judge with their fingerprints, as results that were measured with it record them."""
    return {DEFAULT_MEMBER.name: fingerprint_member(read_member(DEFAULT_MEMBER))}
