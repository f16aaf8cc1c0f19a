"""The judge's Gradio page and Gradio's own API.

All that the app asks of Gradio is here; it must not know how a request is judged.
"""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import gradio as gr
from fastapi import FastAPI
from gradio.queueing import Queue

from modeling.data.battles import DEMO_FOLDER, TEXTS, load_battles
from modeling.judging.loaded import Member
from modeling.runtime.paths import BATTLE_ENDINGS
from modeling.serving.batching import QueueFullError
from modeling.serving.rendering import (
    BREAK,
    MARKUP,
    PREVIEW_ROWS,
    read_card,
    render_error,
    render_judge,
    render_preview,
    render_quality,
    render_verdict,
)
from modeling.serving.requests import TITLES, name_faults
from modeling.serving.server import FileVerdicts, ServedJudge
from modeling.serving.validation import InvalidRequest
from modeling.settings.arguments import AppArguments

TITLE = "Bothways"
PURPOSE = "Which of two answers would people prefer?"
BOTH_ORDERS = "The judge reads every battle in both orders, so the order of the answers cannot decide."
FILE_TYPES = list(BATTLE_ENDINGS)
SECONDS_BETWEEN_SWEEPS = 10
SECONDS_TO_FETCH = 300  # for the second step of a call of Gradio's API, once its answer is there
SECONDS_KEPT = 1800  # uploaded files and results are deleted after this time
# Gradio's API: each call's fields, in order, and whether it needs them.
CALLS = {"judge": dict.fromkeys(TEXTS, True) | {"id": False}, "judge_file": {"file": True}}
NO_VERDICT = "<p class='facts'>The verdict appears here.</p>"  # Gradio shows the place in the queue over it
API_HINT = "<p>From a program: <code>POST /v1/judge</code> with prompt, response_a and response_b as JSON.</p>"
# Announces a result to screen readers.
ANNOUNCE = "element.setAttribute('aria-live', 'polite')"
# Also scrolls to a result outside the window, drops the verdict on texts that were edited meanwhile, passes on that a
# text was edited, and lets Ctrl+Enter press the button. Gradio 6.31's own `input` event of a text box misses pasted and
# deleted text, and it cannot cancel a request whose answer is on its way.
WATCH_VERDICT = f"""
{ANNOUNCE}
let edited = false
watch('value', () => {{
    if (!element.querySelector('.headline, .error')) return
    if (edited) props.value = {json.dumps(NO_VERDICT)}
    else element.scrollIntoView({{block: 'nearest'}})
}})
document.addEventListener('input', event => {{
    if (!event.target.closest('.text')) return
    edited = true
    trigger('input')
}})
document.addEventListener('click', event => {{
    if (event.target.closest('#swap, #clear')) edited = true
    if (event.target.closest('#judge, #examples')) edited = false
}}, true)
document.addEventListener('keydown', event => {{
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey) && event.target.closest('.text')) {{
        event.preventDefault()
        document.querySelector('#judge').click()
    }}
}})
"""
# Does in the browser what `disarm_markdown` does here.
DISARM_MARKDOWN = f"""(...texts) => texts.map(text => text.replace(
    new RegExp({json.dumps(MARKUP.pattern)}, 'g'), '$&' + {json.dumps(BREAK)}
))"""
LATEX = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
]  # no single dollars, which are prices
VIEW_HEIGHT = 600  # pixels; what is longer scrolls
EXAMPLES_FILE = DEMO_FOLDER / "test.jsonl"
EXAMPLES = {
    "English": "prompt-3d26b136e146",
    "Arabic": "prompt-383f90d1833c",
    "Japanese": "prompt-62cec5d7a42b",
    "Hindi": "prompt-3da78f661018",
    "Russian": "prompt-4eee8ec8ef08",
    "Spanish": "prompt-298bf345c95a",
}


def mount_page(app: FastAPI, page: gr.Blocks, arguments: AppArguments, css: Path) -> FastAPI:
    """Adds the page and Gradio's API to the server's routes; returns the server.

    Args:
        app: The server.
        page: What `build_page` returned.
        arguments: The app's flags.
        css: Style sheet of the page.
    """
    # The theme's own greys, links and button have less contrast to what is behind them than 4.5:1.
    contrast = {"body_text_color_subdued": "*neutral_600", "body_text_color_subdued_dark": "*neutral_400"}
    contrast |= {"input_placeholder_color": "*neutral_500", "input_placeholder_color_dark": "*neutral_400"}
    contrast |= {
        "button_primary_background_fill": "*primary_600",
        "button_primary_background_fill_hover": "*primary_700",
    }
    for state in ("", "_active", "_hover", "_visited"):
        contrast[f"link_text_color{state}_dark"] = "*primary_300"
    fonts = {"font": ("system-ui", "sans-serif"), "font_mono": ("ui-monospace", "monospace")}
    page.queue(max_size=arguments.max_waiting, api_open=False)
    # Every API call opens a session, and each session keeps a copy of the page. The default is 10,000.
    page.state_session_capacity = 100
    page.max_threads = page._queue.max_thread_count = 4  # one file, and some for quick requests
    return gr.mount_gradio_app(
        app,
        page,
        path="",
        footer_links=["api"],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        show_error=True,
        max_file_size=arguments.max_bytes,
        theme=gr.themes.Default(primary_hue="indigo", neutral_hue="slate", **fonts).set(**contrast),
        css_paths=css,
        app_kwargs={"lifespan": forget_finished_calls},
    )


@asynccontextmanager
async def forget_finished_calls(app) -> AsyncIterator[None]:
    """Drops, while the server runs, what Gradio 6.31 keeps of finished API calls, some of it for ever.

    This runs in the server's own event loop, where no request can be halfway through using the entries.
    """

    async def forget() -> None:
        """Drops finished calls every few seconds."""
        finished: dict[str, float] = {}
        while True:
            await asyncio.sleep(SECONDS_BETWEEN_SWEEPS)
            queue = app.get_blocks()._queue  # private in Gradio, which offers no other way to them
            finished = drop_finished_calls(queue, finished, time.monotonic())

    task = asyncio.create_task(forget())
    yield
    task.cancel()


def drop_finished_calls(queue: Queue, finished: Mapping[str, float], now: float) -> dict[str, float]:
    """Drops the sessions whose calls were finished `SECONDS_TO_FETCH` ago; until then a client may fetch the answer.

    Args:
        queue: Gradio's.
        finished: What the last call returned.
        now: The time in seconds.

    Returns:
        When the calls of each remaining session were first seen to be finished.
    """
    done = [session for session, events in queue.pending_event_ids_session.items() if not events]
    seen = {session: finished.get(session, now) for session in done}
    for session in [session for session, since in seen.items() if now - since >= SECONDS_TO_FETCH]:
        del queue.pending_event_ids_session[session], seen[session]
        queue.pending_messages_per_session.pop(session, None)
    return seen


# --- the page ---------------------------------------------------------------------------------------------------------


def build_page(served: ServedJudge, folder: Path) -> gr.Blocks:
    """Builds the page and its API.

    Args:
        served: The judge that answers.
        folder: Result files are written to new folders in it.
    """
    with gr.Blocks(title=TITLE, delete_cache=(SECONDS_KEPT // 6, SECONDS_KEPT), analytics_enabled=False) as page:
        orders = BOTH_ORDERS if served.readings == "both" else ""
        gr.HTML(f"<h1>{TITLE}</h1><p>{PURPOSE} {orders}</p>", elem_id="head", js_on_load=None)
        with gr.Tab("Two answers"):
            build_battle_tab(served)
        with gr.Tab("A file"):
            build_file_tab(served, folder)
        with gr.Tab("The judge"):
            gr.HTML(render_judge(served.judge, served.readings), elem_id="facts", js_on_load=None)
            for member in served.judge.members:
                build_card(member)
    return page


def build_battle_tab(served: ServedJudge) -> None:
    """Builds the tab for one battle, and the API's `judge`."""

    async def read(texts: Sequence[object], id: object = "") -> dict:
        """Returns the verdict on one battle. Asynchronous, so that any number can wait and be read together."""
        try:
            return await served.judge_battle(dict(zip(TEXTS, texts, strict=True)) | {"id": id})
        except InvalidRequest as error:
            raise gr.Error(name_faults(error), print_exception=False) from error
        except QueueFullError as error:
            raise gr.Error(str(error), print_exception=False) from error

    async def judge(prompt: str, response_a: str, response_b: str, id: str = "") -> dict:
        """Returns the fields of the verdict on one battle: winner, p_a, p_b, close, p_a in both orders and others."""
        return await read((prompt, response_a, response_b), id)

    async def show_verdict(*texts: str) -> str:
        """Returns the verdict as HTML, or why there is none."""
        try:
            return render_verdict(await read(texts))
        except gr.Error as error:
            return render_error(error.message)
        except asyncio.CancelledError:  # a text was edited; Gradio would show "Error" for an event without a result
            return NO_VERDICT

    inputs = build_texts()
    with gr.Row(elem_id="buttons"):
        button = gr.Button("Which one wins?", variant="primary", elem_id="judge", scale=3, min_width=260)
        swap = gr.Button("Swap A ↔ B", elem_id="swap", min_width=130)
        clear = gr.Button("Clear", elem_id="clear", min_width=80)
    verdict = gr.HTML(NO_VERDICT, elem_id="verdict", js_on_load=WATCH_VERDICT)
    gr.HTML(render_quality(served.judge), elem_id="quality", js_on_load=None)
    build_rendered(inputs)
    labels, texts = zip(*load_examples(), strict=True)
    examples = gr.Examples(
        list(texts), inputs, example_labels=list(labels), label="Examples", api_visibility="private", elem_id="examples"
    )
    gr.HTML(API_HINT, elem_id="api_hint", js_on_load=None)
    # No limit of Gradio's: the judge's own queue reads together what waits.
    event = {"fn": show_verdict, "inputs": inputs, "outputs": verdict, "concurrency_limit": None}
    event |= {"api_visibility": "private"}
    asked = [button.click(**event), examples.load_input_event.then(**event)]
    examples.dataset.click(cancels=asked, **run_in_browser(verdict))
    # A verdict that is still being computed would be that of other texts.
    verdict.input(cancels=asked, **run_in_browser(verdict))
    swap.click(cancels=asked, **run_in_browser(*inputs[1:], verdict, script="(a, b) => [b, a, {}]", inputs=inputs[1:]))
    clear.click(cancels=asked, **run_in_browser(*inputs, verdict, script="() => ['', '', '', {}]"))
    gr.api(judge, api_name="judge", concurrency_limit=None)


def build_texts() -> list[gr.Textbox]:
    """Builds the boxes for prompt and answers."""
    prompt = gr.Textbox(
        label=TITLES["prompt"], lines=2, max_lines=8, placeholder="Question or task", elem_classes="text"
    )
    with gr.Row():
        answers = [
            gr.Textbox(label=TITLES[name], lines=6, max_lines=14, min_width=280, elem_classes=f"text {name}")
            for name in TEXTS[1:]
        ]
    return [prompt, *answers]


def build_rendered(inputs: Sequence[gr.Textbox]) -> None:
    """Builds the closed view of the three texts as Markdown, which follows what is typed. The browser renders it."""
    options = {"line_breaks": True, "latex_delimiters": LATEX, "elem_classes": "rendered", "max_height": VIEW_HEIGHT}
    with gr.Accordion("Show the texts as rendered Markdown", open=False, elem_id="rendered"):
        views = [build_view("prompt", **options)]
        with gr.Row():
            for name in TEXTS[1:]:
                with gr.Column(min_width=280):
                    views.append(build_view(name, **options))
    gr.on([box.change for box in inputs], **run_in_browser(*views, script=DISARM_MARKDOWN, inputs=inputs))


def build_view(name: str, **options) -> gr.Markdown:
    """Builds the view of one text as Markdown, with its title."""
    gr.HTML(f"<b>{TITLES[name]}</b>", js_on_load=None, elem_classes=["title", name])
    return gr.Markdown(sanitize_html=True, **options)


def run_in_browser(*outputs: gr.Component, script: str = "() => {}", inputs: Sequence[gr.Component] = ()) -> dict:
    """Returns an event that runs JavaScript in the browser and asks nothing of the server.

    Args:
        outputs: What the script sets.
        script: A function; {} in it stands for the empty verdict.
        inputs: The script's arguments.
    """
    script = script.replace("{}", json.dumps(NO_VERDICT))
    return {"fn": None, "js": script, "inputs": list(inputs), "outputs": list(outputs), "api_visibility": "private"}


def build_file_tab(served: ServedJudge, folder: Path) -> None:
    """Builds the tab for a file of battles, and the API's `judge_file`."""

    def judge_upload(path: str | None, progress: gr.Progress) -> FileVerdicts:
        """Judges an uploaded file and shows a progress bar."""
        if path is None:
            raise ValueError("Expected a file; found none. Choose one first.")
        # Anybody who knows the path can download the file, so the name must be impossible to guess.
        return served.judge_file(
            Path(path), folder / secrets.token_hex(16), lambda share: progress(share, desc="Judging")
        )

    def show_file(path: str | None, progress=gr.Progress()):  # noqa: B008  (Gradio's own way to ask for a bar)
        """Returns what the page shows: summary, first verdicts and result files, or an error."""
        try:
            found = judge_upload(path, progress)
        except ValueError as error:
            return render_error(str(error)), gr.File(visible=False)
        files = gr.File([str(found.predictions), str(found.submission)], visible=True)
        battles = found.battles.select(range(min(PREVIEW_ROWS, len(found.battles))))
        return render_preview(found.summary, found.verdicts, list(battles)), files

    def judge_file(file: str | None, progress=gr.Progress()) -> tuple[str, str, str]:  # noqa: B008
        """Returns predictions.parquet, submission.csv and a one-line summary of a file of battles."""
        try:
            found = judge_upload(file, progress)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error
        return str(found.predictions), str(found.submission), found.summary

    limits = served.limits
    gr.Markdown(
        f"Upload a parquet, csv or jsonl file with the columns id, prompt, response_a and response_b: up to "
        f"{limits.max_battles:,} battles and {limits.max_bytes / 1e6:g} MB. Any other schema that "
        "`scripts/predict.py` accepts works too; docs/data.md lists them."
    )
    upload = build_upload()
    button = gr.Button("Judge the file", variant="primary", elem_id="judge_file")
    result = gr.HTML(elem_id="result", js_on_load=ANNOUNCE)
    files = gr.File(label="Verdicts", file_count="multiple", visible=False, interactive=False, elem_id="files")
    one_file = {"concurrency_id": "file", "concurrency_limit": 1}
    button.click(show_file, upload, [result, files], api_visibility="private", show_progress_on=upload, **one_file)
    # A file must be cleared before another is uploaded.
    reset = {"queue": False, "api_visibility": "private"}
    upload.clear(lambda: ("", gr.File(visible=False)), None, [result, files], **reset)
    # gr.api derives its inputs from type hints and cannot use the upload box: hence a click on an invisible button.
    hidden = [gr.File(visible=False, label=name) for name in ("predictions", "submission")]
    hidden.append(gr.Textbox(visible=False, label="summary"))
    gr.Button(visible=False).click(judge_file, upload, hidden, api_name="judge_file", **one_file)


def build_upload() -> gr.File:
    """Builds the upload box. Unlike Gradio's own, it downloads nothing from a URL and leaves no empty file behind."""
    upload = gr.File(label="Battles", file_types=FILE_TYPES, height=140, elem_id="upload")
    # Methods of this one instance are replaced: for a subclass Gradio would write a .pyi stub beside this module.
    keep = upload.async_move_resource_to_block_cache

    async def keep_uploaded(path: str | Path | None) -> str | None:
        """Moves an uploaded file to Gradio's cache and returns its path there."""
        if path is not None and not Path(path).is_file():
            raise gr.Error("Expected an uploaded file; found none. Upload it first.", print_exception=False)
        return await keep(path)

    upload.async_move_resource_to_block_cache = keep_uploaded
    upload.preprocess = lambda sent: sent and sent.path
    return upload


def build_card(member: Member) -> None:
    """Builds a member's model card with its figures."""
    text, pictures = read_card(member.folder)
    with gr.Accordion(f"Card of member {member.name}", open=False):
        gr.Markdown(text, sanitize_html=True, elem_classes="card", max_height=VIEW_HEIGHT)
        if pictures:
            gr.Gallery(
                [(str(path), path.stem.replace("_", " ")) for path in pictures],
                show_label=False, columns=2, object_fit="contain", interactive=False, buttons=["fullscreen"],
            )  # fmt: skip


def load_examples() -> Iterator[tuple[str, list[str]]]:
    """Yields some of the demo's held-out battles: the language and the three texts."""
    battles = {battle["id"]: battle for battle in load_battles(EXAMPLES_FILE)}
    for language, id in EXAMPLES.items():
        yield language, [battles[id][name] for name in TEXTS]
