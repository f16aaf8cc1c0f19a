"""The two HTTP protocols of decision models, answered by a judge: transformers' System One and OpenAI's Decisions.

A request becomes battles, all pairs of the answers that it asks about; their probabilities become the body of the
response. A request that a judge cannot answer raises `InvalidRequest`, which names all its faults. This module must
know neither a web framework nor a model.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

from modeling.data.battles import RESPONSES
from modeling.data.cells import RowError
from modeling.data.conversations import check_messages, join_messages
from modeling.judging.ranking import list_pairs, list_texts, score_answers
from modeling.serving.requests import PairLimits
from modeling.serving.validation import BodyReader, Place, describe, find_nearest, shorten
from modeling.serving.validation import InvalidRequest as InvalidRequest

MAX_SYSTEMONE_QUESTIONS, MAX_DECISION_QUESTIONS = 64, 400  # the protocols' own limits
COMPARED = '{"prompt": <text or messages>, "responses": {"one": <answer>, "two": <answer>}}'
PURPOSE = "This judge says which answer to a prompt people prefer, and nothing else."
SYSTEMONE_WAYS = (
    'Ask {"state": <prompt>, "questions": {"best": {"type": "choice", "criteria": {"one": <answer>, "two": <answer>}}}}'
    f', or name the answers in {{"state": {COMPARED}}} and ask for "criteria": {{"one": null, "two": null}}.'
)
DECISION_WAYS = (
    'Ask {"input": <prompt>, "questions": [{"type": "choice", "instructions": "Which answer is better?", "choices": '
    '[{"value": "one", "description": <answer>}, {"value": "two", "description": <answer>}]}]}.'
)
STATE_OF_TWO = f"Write the state as {COMPARED}."
INPUT_OF_TWO = (
    f'Write the input as [{{"role": "user", "content": [{{"type": "input_json", "data": {COMPARED}}}]}}], with '
    "nothing beside it."
)


# --- what is asked, and the answers -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """A question that a judge can answer: which of these answers is chosen, or how probably the first of two is.

    name: What the request calls the question; None if it has no name.
    type: "choice"; or, for the probability of the first answer, "noul" (System One) or "predicate" (OpenAI).
    options: What the request calls each answer, in its order.
    texts: The answers.
    """

    name: str | None
    type: str
    options: tuple[str | bool, ...]
    texts: tuple[str, ...]

    def list_text_pairs(self) -> list[tuple[str, str]]:
        """Returns all pairs of different answers. Their order depends on the texts alone."""
        texts = list_texts(self.texts)
        return [(texts[i], texts[j]) for i, j in list_pairs(len(texts))]


class Decision:
    """What a valid request asks: battles for the judge, and the response once their probabilities are known.

    Example: `decision.answer(share_wins(judge.predict(decision.battles, readings="both")), tokens)`.

    battles: {"id", "prompt", "response_a", "response_b"}: all pairs of answers of each question, and a pair of several
        questions once. Which answer is a depends on the texts alone, so that the order of the options cannot change a
        probability. There are none if all answers of each question are the same text: these are equally probable.
    """

    def __init__(self, prompt: str, questions: Sequence[Question], render: Callable[[list, int], dict]):
        self.questions, self._render = questions, render
        pairs = dict.fromkeys(pair for question in questions for pair in question.list_text_pairs())
        self._ids = {pair: id for id, pair in enumerate(pairs)}
        self.battles = [
            {"id": id, "prompt": prompt, **dict(zip(RESPONSES, pair, strict=True))} for pair, id in self._ids.items()
        ]

    def answer(self, p_a: Sequence[float], tokens: int) -> dict:
        """Returns the body of the response.

        Args:
            p_a: The probability that response_a wins, for each of the battles, read in both orders.
            tokens: Tokens that the judge read, for the response's `usage`.
        """
        p_a = [float(p) for p in p_a]
        assert len(p_a) == len(self.battles)
        return self._render([(question, self._choose(question, p_a)) for question in self.questions], tokens)

    def _choose(self, question: Question, p_a: Sequence[float]) -> list[float]:
        """Returns the probability of each option; answers with the same text have equal ones."""
        pairs = list_pairs(len(list_texts(question.texts)))
        p_first = [p_a[self._ids[pair]] for pair in question.list_text_pairs()]
        return score_answers(question.texts, dict(zip(pairs, p_first, strict=True))).p_best


def compute_confidence(p: Sequence[float]) -> float:
    """Computes a choice's confidence as transformers does: 0 if all options are equally probable, 1 if one is sure."""
    return max(0.0, (max(p) - 1 / len(p)) / (1 - 1 / len(p)))


def _render_systemone(model: str, answers: Iterable[tuple[Question, list[float]]], tokens: int) -> dict:
    """Returns System One's response."""
    rendered = {}
    for question, p in answers:
        if question.type == "noul":
            rendered[question.name] = {"type": "noul", "noul": p[0]}
            continue
        by_option = dict(zip(question.options, p, strict=True))
        best = max(by_option, key=by_option.__getitem__)
        rendered[question.name] = {"type": "choice", "choice": best, "confidence": compute_confidence(p)}
        rendered[question.name]["probabilities"] = by_option
    return {"model": model, "answers": rendered, "usage": {"input_tokens": tokens, "output_tokens": 0}}


def _render_decision(model: str, answers: Iterable[tuple[Question, list[float]]], tokens: int) -> dict:
    """Returns the response of OpenAI's Decisions."""
    rendered = []
    for question, p in answers:
        answer: dict = {"type": question.type, "name": question.name}
        if question.type == "predicate":
            answer["probability"] = p[0]
        else:
            answer |= {"choice": question.options[p.index(max(p))], "confidence": compute_confidence(p)}
            pairs = zip(question.options, p, strict=True)
            answer["probabilities"] = [{"value": value, "probability": each} for value, each in pairs]
        rendered.append(answer)
    usage = {
        "input_tokens": tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 0,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": tokens,
    }
    return {"model": model, "answers": rendered, "usage": usage}


# --- what both protocols have -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Asked:
    """What a request asks about: a prompt, and its answers by name if they are there and not in the questions."""

    prompt: str | None = None
    responses: Mapping[str, str | None] | None = None


@dataclass(frozen=True)
class _Option:
    """One option of a choice: what it is called, its text if it has one, and where it is in the body."""

    name: str | bool
    text: object
    where: Place


class _DecisionReader(BodyReader):
    """Reads what both protocols have."""

    def read_prompt(self, value: object, where: Place) -> str | None:
        """Returns a prompt, given as text, messages or {"messages": ...}, as one text."""
        if isinstance(value, dict):
            value, where = self.read_object(value, where, ("messages",)).get("messages"), (*where, "messages")
            return None if value is None else self.read_messages(value, where)
        return self.read_messages(value, where) if isinstance(value, list) else self.read_text(value, where)

    def read_messages(self, value: object, where: Place) -> str | None:
        """Returns messages as one text, joined as `load_battles` joins them."""
        messages = []
        for number, message in enumerate(self.read_list(value, where)):
            fields = self.read_object(message, at := (*where, number), ("role", "content"))
            if len(fields) < 2:
                continue
            try:
                ((role, content),) = check_messages([fields], "messages")
            except RowError as error:
                found = " and ".join(f"{name} {describe(fields[name])}" for name in ("role", "content"))
                self.refuse(at, f"{error.expected}; found {found}. This judge reads text alone.")
                continue
            messages.append((role, self.read_text(content, (*at, "content")) or ""))
        return self.read_text(join_messages(messages), where) if messages and not self.faults else None

    def read_comparison(self, value: object, where: Place) -> _Asked:
        """Returns a prompt with its answers by name."""
        fields = self.read_object(value, where, ("prompt", "responses"))
        prompt = self.read_prompt(fields["prompt"], (*where, "prompt")) if "prompt" in fields else None
        responses, at = fields.get("responses"), (*where, "responses")
        if not isinstance(responses, dict):
            if "responses" in fields:
                self.refuse(at, f"expected answers by name; found {describe(responses)}.", "dict_type")
            return _Asked(prompt, {})
        if len(responses) < 2:
            self.refuse(at, f"expected at least two answers; found {len(responses)}. Add one to compare.", "too_short")
        for name in responses:
            self.read_name(name, (*at, name))
        return _Asked(prompt, {name: self.read_text(text, (*at, name)) for name, text in responses.items()})

    def ask_first(self, name: str | None, kind: str, asked: _Asked, where: Place, way_out: str) -> Question | None:
        """Returns the question whether the first of two answers is better."""
        if asked.responses == {}:
            return None  # refused already
        if asked.responses is None or len(asked.responses) != 2:
            found = "none" if asked.responses is None else len(asked.responses)
            expected = f"expected two responses, as a {kind} asks whether the first of two is better"
            self.refuse(where, f"{expected}; found {found}. {way_out}")
            return None
        return Question(name, kind, tuple(asked.responses), tuple(text or "" for text in asked.responses.values()))

    def ask_choice(
        self, name: str | None, options: Sequence[_Option], asked: _Asked, where: Place, way_out: str
    ) -> Question:
        """Returns the question which answer is chosen. The options have the answers, or name those of `asked`."""
        if len(options) < 2:
            found = len(options)
            self.refuse(where, f"expected at least two answers to compare; found {found}. {way_out}", "too_short")
        texts = [self._read_answer(option, asked) or "" for option in options]
        return Question(name, "choice", tuple(option.name for option in options), tuple(texts))

    def _read_answer(self, option: _Option, asked: _Asked) -> str | None:
        """Returns the answer of an option."""
        if isinstance(option.name, str) and self.read_name(option.name, option.where) is None:
            return None
        if asked.responses is None:
            return self.read_text(option.text, option.where)
        if asked.responses and option.name not in asked.responses:
            names = islice(map(shorten, asked.responses), 5)
            near = None if self.is_full() else find_nearest(str(option.name), asked.responses)
            hint = f"Did you mean {near}?" if near else "Use one of their names."
            expected = f"expected the name of one of the responses ({', '.join(names)})"
            self.refuse(option.where, f"{expected}; found {describe(option.name)}. {hint}")
        elif asked.responses and option.text is not None:
            found = describe(option.text)
            self.refuse(option.where, f"expected no text, as the responses have it; found {found}. Leave it out.")
        return asked.responses.get(option.name)

    def finish_questions(self, questions: Iterable[Question | None], max_pairs: int) -> list[Question]:
        """Returns the questions; raises an InvalidRequest if there were faults, or if there are too many pairs."""
        found = [question for question in questions if question]
        num_pairs = sum(math.comb(len(set(question.texts)), 2) for question in found)
        if num_pairs > max_pairs:
            self.refuse(
                ("questions",),
                f"expected at most {max_pairs:,} pairs of answers in all questions; found {num_pairs:,}, as n answers "
                "make n (n - 1) / 2. Ask about fewer at a time.",
                "too_long",
            )
        self.finish()
        return found


# --- System One -------------------------------------------------------------------------------------------------------


def parse_systemone(body: object, limits: PairLimits, model: str) -> Decision:
    """Reads the body of a request to `/v1/systemone`.

    Args:
        body: The parsed JSON, whatever it is.
        limits: Upper limits.
        model: Name of the judge. The response repeats the request's own `model` if there is one, as transformers does.

    Raises:
        InvalidRequest: If the request is malformed, or asks what a judge cannot answer.
    """
    reader = _DecisionReader(limits.max_characters)
    fields = reader.read_object(body, (), ("state", "questions"), ("model", "assets"))
    if "model" in fields:
        model = reader.read_name(fields["model"], ("model",)) or model
    if fields.get("assets", {}) != {}:
        reader.refuse(("assets",), f"expected none; found {describe(fields['assets'])}. This judge reads text alone.")
    asked = _read_state(reader, fields["state"]) if "state" in fields else _Asked()
    questions = fields.get("questions")
    if isinstance(questions, dict):
        pairs = reader.read_list(list(questions.items()), ("questions",), MAX_SYSTEMONE_QUESTIONS)
        found = [_read_systemone_question(reader, name, question, asked) for name, question in pairs]
    else:
        found = []
        if "questions" in fields:
            reader.refuse(("questions",), f"expected questions by name; found {describe(questions)}.", "dict_type")
    questions = reader.finish_questions(found, limits.max_pairs)
    return Decision(asked.prompt, questions, partial(_render_systemone, model))


def _read_state(reader: _DecisionReader, state: object) -> _Asked:
    """Reads a state: a prompt, or a prompt with its answers."""
    match state:
        case str() | list() | {"messages": _}:
            return _Asked(reader.read_prompt(state, ("state",)))
        case {"prompt": _} | {"responses": _}:
            return reader.read_comparison(state, ("state",))
    near = (
        find_nearest(next(iter(state)), ("messages", "prompt", "responses"))
        if state and isinstance(state, dict)
        else None
    )
    hint = f" Did you mean {near}?" if near else ""
    expected = "expected a prompt, as text or messages, or a prompt with responses"
    reader.refuse(("state",), f"{expected}; found {describe(state)}.{hint} {SYSTEMONE_WAYS}")
    return _Asked()


def _read_systemone_question(reader: _DecisionReader, name: str, question: object, asked: _Asked) -> Question | None:
    """Reads one question; None if there is nothing to ask."""
    reader.read_name(name, where := ("questions", name))
    kind = _read_kind(reader, question, where, ("choice", "noul"), SYSTEMONE_WAYS)
    if kind is None:
        return None
    required = ("type", "criteria") if kind == "choice" else ("type",)
    fields = reader.read_object(question, where, required, ("criteria", "instructions"))
    _check_instructions(reader, fields.get("instructions"), (*where, "instructions"))
    criteria, at = fields.get("criteria"), (*where, "criteria")
    if kind == "noul":
        if criteria is not None:
            message = "expected none, as a noul asks whether the first response is better"
            reader.refuse(at, f"{message}; found {describe(criteria)}. Leave them out, or ask a choice.")
        return reader.ask_first(name, kind, asked, where, STATE_OF_TWO)
    if isinstance(criteria, dict):
        options = [_Option(option, text, (*at, option)) for option, text in criteria.items()]
        return reader.ask_choice(name, options, asked, at, SYSTEMONE_WAYS)
    if "criteria" in fields:
        reader.refuse(at, f"expected answers by name; found {describe(criteria)}. {SYSTEMONE_WAYS}", "dict_type")
    return None


def _read_kind(
    reader: _DecisionReader, question: object, where: Place, kinds: tuple[str, str], ways: str
) -> str | None:
    """Returns the type of a question; None if a judge cannot answer that type."""
    kind = question.get("type") if isinstance(question, dict) else question
    if isinstance(question, dict) and kind in kinds:
        return kind
    first, second = kinds
    message = f"expected {first!r} or {second!r}; found {describe(kind)}. {PURPOSE} {ways}"
    reader.refuse((*where, "type"), message, "literal_error")
    return None


def _check_instructions(reader: _DecisionReader, instructions: object, where: Place) -> None:
    """Refuses instructions that are no text. What they say is not read: the judge was trained without them."""
    if instructions is not None and not isinstance(instructions, str):
        reader.refuse(where, f"expected text; found {describe(instructions)}. Send a string.", "string_type")


# --- OpenAI's Decisions -----------------------------------------------------------------------------------------------


def parse_decision(body: object, limits: PairLimits, model: str) -> Decision:
    """Reads the body of a request to `/v1/decisions`.

    Args:
        body: The parsed JSON, whatever it is.
        limits: Upper limits.
        model: Name of the judge, for the response. The request's own `model` may be any text.

    Raises:
        InvalidRequest: If the request is malformed, or asks what a judge cannot answer.
    """
    reader = _DecisionReader(limits.max_characters)
    unread = ("prompt_cache_key", "prompt_cache_options", "safety_identifier")
    fields = reader.read_object(body, (), ("model", "input", "questions"), unread)
    if "model" in fields:
        reader.read_text(fields["model"], ("model",))
    asked = _read_input(reader, fields["input"]) if "input" in fields else _Asked()
    questions = []
    if "questions" in fields:
        questions = reader.read_list(fields["questions"], ("questions",), MAX_DECISION_QUESTIONS)
    found = [
        _read_decision_question(reader, ("questions", number), question, asked)
        for number, question in enumerate(questions)
    ]
    questions = reader.finish_questions(found, limits.max_pairs)
    return Decision(asked.prompt, questions, partial(_render_decision, model))


def _read_input(reader: _DecisionReader, value: object) -> _Asked:
    """Reads an input: a prompt, or one message with one JSON part that holds a prompt with its answers."""
    if isinstance(value, str):
        return _Asked(reader.read_text(value, ("input",)))
    match value:
        case [{"role": "user", "content": [{"type": "input_json", "data": data} as part]} as message]:
            reader.read_object(message, ("input", 0), ("role", "content"), ("type",))
            reader.read_object(part, at := ("input", 0, "content", 0), ("type", "data"))
            return reader.read_comparison(data, (*at, "data"))
    messages = reader.read_list(value, ("input",))
    converted = [_convert_message(reader, message, ("input", number)) for number, message in enumerate(messages)]
    return _Asked(reader.read_messages(converted, ("input",)) if converted and not reader.faults else None)


def _convert_message(reader: _DecisionReader, message: object, where: Place) -> dict:
    """Returns role and content, as one text, of a message of OpenAI's."""
    if isinstance(message, dict) and message.get("type", "message") != "message":
        found = describe(message["type"])
        reader.refuse((*where, "type"), f"expected 'message'; found {found}. {PURPOSE}", "literal_error")
        return {}
    fields = reader.read_object(message, where, ("role", "content"), ("type", "phase"))
    if isinstance(content := fields.get("content"), list):
        parts = [_read_text_part(reader, part, (*where, "content", number)) for number, part in enumerate(content)]
        fields["content"] = "\n\n".join(part for part in parts if part)
    # OpenAI's newer name for the same role.
    role = "system" if fields.get("role") == "developer" else fields.get("role")
    return {"role": role, "content": fields.get("content")}


def _read_text_part(reader: _DecisionReader, part: object, where: Place) -> str | None:
    """Returns the text of a part."""
    kind = part.get("type") if isinstance(part, dict) else part
    if not isinstance(part, dict) or kind not in ("input_text", "output_text"):
        message = f"expected 'input_text' or 'output_text'; found {describe(kind)}. This judge reads text alone"
        reader.refuse((*where, "type"), f"{message}, or JSON with two answers. {INPUT_OF_TWO}", "literal_error")
        return None
    fields = reader.read_object(part, where, ("type", "text"), ("prompt_cache_breakpoint",))
    return reader.read_text(fields["text"], (*where, "text")) if "text" in fields else None


def _read_decision_question(reader: _DecisionReader, where: Place, question: object, asked: _Asked) -> Question | None:
    """Reads one question; None if there is nothing to ask."""
    kind = _read_kind(reader, question, where, ("choice", "predicate"), DECISION_WAYS)
    if kind is None:
        return None
    required = ("type", "choices") if kind == "choice" else ("type",)
    fields = reader.read_object(question, where, required, ("name", "instructions"))
    name = fields.get("name")
    if name is not None:
        name = reader.read_name(name, (*where, "name"))
    _check_instructions(reader, fields.get("instructions"), (*where, "instructions"))
    if kind == "predicate":
        return reader.ask_first(name, kind, asked, where, INPUT_OF_TWO)
    if "choices" not in fields:
        return None
    options: dict[str | bool, _Option] = {}
    for number, choice in enumerate(reader.read_list(fields["choices"], at := (*where, "choices"))):
        option = _read_option(reader, choice, (*at, number), asked)
        if option and option.name in options:
            found = f"{describe(option.name)} again"
            reader.refuse((*at, number, "value"), f"expected another value than before; found {found}. Rename it.")
        elif option:
            options[option.name] = option
    return reader.ask_choice(name, list(options.values()), asked, at, DECISION_WAYS)


def _read_option(reader: _DecisionReader, choice: object, where: Place, asked: _Asked) -> _Option | None:
    """Reads one of the choices of a question."""
    fields = reader.read_object(choice, where, ("value",), ("description",))
    if "value" not in fields:
        return None
    value, description = fields["value"], fields.get("description")
    if not isinstance(value, str | bool):
        reader.refuse((*where, "value"), f"expected text, true or false; found {describe(value)}.", "string_type")
        return None
    if isinstance(value, str) and description is None:  # the value itself is the answer, or the name of one
        return _Option(value, value if asked.responses is None else None, (*where, "value"))
    return _Option(value, description, (*where, "description"))
