"""The judge's Gradio page and Gradio's own API.

All that the app asks of Gradio is here; it must not know how a request is judged.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import gradio as gr
from fastapi import FastAPI

from modeling.data.battles import DEMO_FOLDER, TEXTS, load_battles
from modeling.judging.loading import Member
from modeling.runtime.paths import BATTLE_ENDINGS
from modeling.serving.batching import QueueFullError
from modeling.serving.rendering import read_card, render_verdict
from modeling.serving.requests import TITLES, name_faults
from modeling.serving.server import FileVerdicts, ServedJudge
from modeling.serving.validation import InvalidRequest
from modeling.settings.arguments import AppArguments

TITLE = "Bothways"
PURPOSE = (
    "Which of two answers would people prefer? The judge reads every battle in both orders, "
    "so the order of the answers cannot decide."
)
FILE_TYPES = list(BATTLE_ENDINGS)
SECONDS_BETWEEN_SWEEPS = 10
SECONDS_KEPT = 1800  # uploaded files and results are deleted after this time
# Gradio's API: each call's fields, in order, and whether it needs them.
CALLS = {"judge": dict.fromkeys(TEXTS, True) | {"id": False}, "judge_file": {"file": True}}
NO_VERDICT = "<p class='facts'>The verdict appears here.</p>"  # Gradio shows the place in the queue over it
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
        theme=gr.themes.Default(primary_hue="indigo", neutral_hue="slate", **fonts),
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
        while True:
            await asyncio.sleep(SECONDS_BETWEEN_SWEEPS)
            queue = app.get_blocks()._queue  # private in Gradio, which offers no other way to them
            for session in [session for session, events in queue.pending_event_ids_session.items() if not events]:
                del queue.pending_event_ids_session[session]
                queue.pending_messages_per_session.pop(session, None)

    task = asyncio.create_task(forget())
    yield
    task.cancel()


# --- the page ---------------------------------------------------------------------------------------------------------


def build_page(served: ServedJudge, folder: Path) -> gr.Blocks:
    """Builds the page and its API.

    Args:
        served: The judge that answers.
        folder: Result files are written to new folders in it.
    """
    with gr.Blocks(title=TITLE, delete_cache=(SECONDS_KEPT // 6, SECONDS_KEPT), analytics_enabled=False) as page:
        gr.HTML(f"<h1>{TITLE}</h1><p>{PURPOSE}</p>", elem_id="head", js_on_load=None)
        with gr.Tab("Two answers"):
            build_battle_tab(served)
        with gr.Tab("A file"):
            build_file_tab(served, folder)
        with gr.Tab("The judge"):
            for member in served.judge.members:
                build_card(member)
    return page


def build_battle_tab(served: ServedJudge) -> None:
    """Builds the tab for one battle: three texts, a button, examples and the verdict, and the API's `judge`."""

    async def read(texts: Sequence[object], id: object = "") -> dict:
        """Returns the verdict on one battle. Asynchronous, so that any number can wait and be read together."""
        try:
            return await served.judge_battle(dict(zip(TEXTS, texts, strict=True)) | {"id": id})
        except InvalidRequest as error:
            raise gr.Error(name_faults(error), print_exception=False) from error
        except QueueFullError as error:
            raise gr.Error(str(error), print_exception=False) from error

    async def judge(prompt: str, response_a: str, response_b: str, id: str = "") -> dict:
        """Returns the verdict on one battle: winner, p_a, p_b, p_a in both orders, tokens and truncated tokens."""
        return await read((prompt, response_a, response_b), id)

    async def show_verdict(*texts: str):
        """Returns the verdict as HTML and a hidden note; for a refused battle, no verdict and a note that says why."""
        try:
            verdict = await read(texts)
        except gr.Error as error:
            return NO_VERDICT, gr.Textbox(error.message, visible=True)
        return render_verdict(verdict), gr.Textbox(visible=False)

    prompt = gr.Textbox(
        label=TITLES["prompt"], lines=2, max_lines=8, placeholder="Question or task", elem_classes="text"
    )
    with gr.Row():
        answers = [
            gr.Textbox(label=TITLES[name], lines=6, max_lines=14, min_width=280, elem_classes=f"text {name}")
            for name in TEXTS[1:]
        ]
    button = gr.Button("Which one wins?", variant="primary", elem_id="judge")
    note, verdict = build_note("note"), gr.HTML(NO_VERDICT, elem_id="verdict", js_on_load=None)
    labels, texts = zip(*load_examples(), strict=True)
    inputs = [prompt, *answers]
    examples = gr.Examples(
        list(texts), inputs, example_labels=list(labels), label="Examples", api_visibility="private", elem_id="examples"
    )
    # No limit of Gradio's: the judge's own queue reads together what waits.
    event = {"fn": show_verdict, "inputs": inputs, "outputs": [verdict, note], "concurrency_limit": None}
    event |= {"api_visibility": "private", "show_progress_on": [verdict]}
    button.click(**event)
    examples.load_input_event.then(**event)
    gr.api(judge, api_name="judge", concurrency_limit=None)


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
        """Returns what the page shows: the result files and a summary, or an error."""
        try:
            found = judge_upload(path, progress)
        except ValueError as error:
            return gr.File(visible=False), gr.Textbox(str(error), visible=True), gr.Textbox(visible=False)
        files = gr.File([str(found.predictions), str(found.submission)], visible=True)
        return files, gr.Textbox(visible=False), gr.Textbox(found.summary, visible=True)

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
        "`scripts/predict.py` accepts works too."
    )
    upload = build_upload()
    button = gr.Button("Judge the file", variant="primary", elem_id="judge_file")
    note, summary = build_note("file_note"), build_note("summary")
    files = gr.File(label="Verdicts", file_count="multiple", visible=False, interactive=False, elem_id="files")
    one_file = {"concurrency_id": "file", "concurrency_limit": 1}
    button.click(
        show_file, upload, [files, note, summary], api_visibility="private", show_progress_on=upload, **one_file
    )
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
    with gr.Accordion(f"Member {member.name}", open=True):
        gr.Markdown(text, sanitize_html=True, elem_classes="card")
        if pictures:
            gr.Gallery(
                [(str(path), path.stem.replace("_", " ")) for path in pictures],
                show_label=False, columns=2, object_fit="contain", interactive=False, buttons=["fullscreen"],
            )  # fmt: skip


def build_note(name: str) -> gr.Textbox:
    """Builds a hidden box for messages. It is a text box because messages may quote users, and it renders no markup."""
    return gr.Textbox(visible=False, show_label=False, container=False, lines=1, max_lines=6, elem_id=name)


def load_examples() -> Iterator[tuple[str, list[str]]]:
    """Yields some of the demo's held-out battles: the language and the three texts."""
    battles = {battle["id"]: battle for battle in load_battles(EXAMPLES_FILE)}
    for language, id in EXAMPLES.items():
        yield language, [battles[id][name] for name in TEXTS]
