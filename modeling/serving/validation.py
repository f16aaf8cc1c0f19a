"""Reads the parts of a request's JSON body and collects every fault. It must not know what is asked, nor a framework.

The faults have the shape of FastAPI's status 422. Pydantic, which FastAPI validates with, is not used: its messages do
not say the way out, and what is allowed in one part of a decision depends on another part.
"""

import difflib
from collections.abc import Iterable, Sequence
from itertools import islice

from modeling.data.text import has_surrogates, is_blank, replace_surrogates

MAX_FAULTS = 50  # of one request; a body of megabytes could hold a million
SHOWN_CHARACTERS = 60  # of a text that a user sent, in a message

Place = tuple[str | int, ...]  # where in the body: keys and numbers of entries


class InvalidRequest(ValueError):
    """Says why a request cannot be answered.

    `detail` is that of FastAPI's status 422: for each fault {"loc": [...], "msg": ..., "type": ...}.
    """

    def __init__(self, detail: list[dict]):
        super().__init__("\n".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in detail))
        self.detail = detail


class BodyReader:
    """Reads parts of one body. A part with a fault comes back empty or as None, so that the others are read too.

    Example: `reader.read_text(body["prompt"], ("prompt",))`, and `reader.finish()` after the last part.
    """

    def __init__(self, max_characters: int):
        self.max_characters = max_characters
        self.faults: list[dict] = []

    def refuse(self, where: Place, message: str, type: str = "value_error") -> None:
        """Notes a fault; `type` is pydantic's name for its kind."""
        if not self.is_full():
            place = [shorten(part) if isinstance(part, str) else part for part in ("body", *where)]
            self.faults.append({"loc": place, "msg": message, "type": type})

    def is_full(self) -> bool:
        """Returns whether no more faults are noted, so that nothing needs to be found out about them."""
        return len(self.faults) >= MAX_FAULTS

    def finish(self) -> None:
        """Raises an InvalidRequest if there were faults."""
        if self.faults:
            raise InvalidRequest(self.faults)

    def read_object(self, value: object, where: Place, required: Sequence[str], optional: Sequence[str] = ()) -> dict:
        """Returns the known keys of an object. A key is refused if it is unknown, and named if it is missing."""
        if not isinstance(value, dict):
            self.refuse(where, f"expected an object; found {describe(value)}.", "dict_type")
            return {}
        known = list(dict.fromkeys([*required, *optional]))
        for key in islice((key for key in value if key not in known), MAX_FAULTS):
            if self.is_full():
                break
            near = find_nearest(key, known)
            way_out = f"Did you mean {near}?" if near else "Leave it out."
            self.refuse((*where, key), f"expected {', '.join(known)}. {way_out}", "extra_forbidden")
        for key in required:
            if key not in value:
                self.refuse((*where, key), "expected this key; found none. Add it.", "missing")
        return {key: value[key] for key in known if key in value}

    def read_text(self, value: object, where: Place) -> str | None:
        """Returns a text without lone surrogates. It must be neither blank nor too long."""
        if not self._is_text(value, where):
            return None
        if is_blank(value):
            self.refuse(where, "expected some text; found none. Write it here.", "string_too_short")
            return None
        return replace_surrogates(value)  # JSON lets lone ones in; the tokenizer refuses them

    def _is_text(self, value: object, where: Place) -> bool:
        """Returns whether a value is a text that is not too long; refuses it otherwise."""
        if not isinstance(value, str):
            self.refuse(where, f"expected text; found {describe(value)}. Send a string.", "string_type")
            return False
        if (found := len(value)) > (most := self.max_characters):
            self.refuse(where, f"expected at most {most:,} characters; found {found:,}. Shorten it.", "string_too_long")
        return found <= most

    def read_name(self, value: object, where: Place) -> str | None:
        """Returns a text that the response repeats, so that no surrogate in it can be replaced. It may be blank."""
        if isinstance(value, str) and has_surrogates(value[: self.max_characters]):
            self.refuse(where, "expected a name in Unicode; found a surrogate. Rename it.", "string_unicode")
        elif self._is_text(value, where):
            return value
        return None

    def read_list(self, value: object, where: Place, most: int | None = None) -> list:
        """Returns a list with at least one entry and at most `most`."""
        if not isinstance(value, list):
            self.refuse(where, f"expected a list; found {describe(value)}.", "list_type")
        elif not value:
            self.refuse(where, "expected at least one entry; found none. Add one.", "too_short")
        elif most and len(value) > most:
            self.refuse(where, f"expected at most {most}; found {len(value):,}. Send several requests.", "too_long")
        else:
            return value
        return []


def find_nearest(name: str, known: Iterable[str]) -> str | None:
    """Returns the known name that a misspelt one probably means."""
    near = difflib.get_close_matches(shorten(name), map(shorten, islice(known, MAX_FAULTS)), n=1)
    return near[0] if near else None


def describe(value: object) -> str:
    """Returns what a value is, for a message: the beginning of a text, or the kind of another JSON value."""
    if isinstance(value, str):
        return repr(shorten(value))
    kinds = ((bool, "true or false"), (int | float, "a number"), (dict, "an object"), (list, "a list"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "null")


def shorten(text: str) -> str:
    """Returns the beginning of a text that a user sent, fit for a response."""
    shown = replace_surrogates(text[:SHOWN_CHARACTERS])
    return shown if len(text) <= SHOWN_CHARACTERS else f"{shown}…"
