"""The Gradio page of a judge, its API, and the server around them."""

import asyncio
import ctypes
import platform
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import gradio as gr
from starlette.middleware import Middleware

from modeling.data.battles import DEMO_FOLDER, TEXTS, load_battles
from modeling.judging.loading import Member
from modeling.runtime.paths import BATTLE_ENDINGS
from modeling.serving.server import TITLES, FileVerdicts, ServedJudge
from modeling.serving.web import RequestGuard, read_card, render_verdict
from modeling.settings.arguments import AppArguments

TITLE = "Bothways"
PURPOSE = (
    "Which of two answers would people prefer? Every battle is read in both orders, so that the order cannot decide."
)
FILE_TYPES = list(BATTLE_ENDINGS)
M_ARENA_MAX = -8  # of glibc's malloc.h
SECONDS_BETWEEN_SWEEPS = 10
SECONDS_KEPT = 1800  # of uploaded files and of results
NO_VERDICT = "<p class='facts'>The verdict comes here.</p>"  # and until then, how many are before you
EXAMPLES_FILE = DEMO_FOLDER / "test.jsonl"
EXAMPLES = {
    "English": "demo-ccad6f2dc5a6",
    "Arabic": "demo-491ef624facd",
    "Japanese": "demo-2ebbca208b91",
    "Hindi": "demo-3ac582a309b3",
    "Russian": "demo-489d3d546f18",
    "Spanish": "demo-98a45ee45cae",
}


def serve(page: gr.Blocks, host: str, port: int, arguments: AppArguments, css: Path) -> None:
    """Starts the server in its own threads."""
    fonts = {"font": ("system-ui", "sans-serif"), "font_mono": ("ui-monospace", "monospace")}
    page.queue(max_size=arguments.max_waiting, api_open=False)
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        prevent_thread_lock=True,
        quiet=True,
        footer_links=["api"],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        max_file_size=arguments.max_bytes,
        state_session_capacity=100,  # of 10,000, each a copy of the page: API calls are sessions too
        max_threads=4,  # a battle, a file, and what is quick
        theme=gr.themes.Default(primary_hue="indigo", neutral_hue="slate", **fonts),
        css_paths=css,
        app_kwargs={
            "middleware": [Middleware(RequestGuard, max_bytes=arguments.max_bytes)],
            "lifespan": forget_finished_calls,
        },
    )


def bound_heaps() -> None:
    """Lets glibc keep two heaps: it gives each thread one, and gives back little of what they have grown to."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)


@asynccontextmanager
async def forget_finished_calls(app) -> AsyncIterator[None]:
    """While the server runs: drops what Gradio 6.31 keeps of each API call that is over, some of it for ever.

    In the server's own loop, where no request is half way through using it.
    """

    async def forget() -> None:
        """Drops finished calls, again and again."""
        while True:
            await asyncio.sleep(SECONDS_BETWEEN_SWEEPS)
            queue = app.get_blocks()._queue
            for session in [session for session, events in queue.pending_event_ids_session.items() if not events]:
                del queue.pending_event_ids_session[session]
                queue.pending_messages_per_session.pop(session, None)

    task = asyncio.create_task(forget())
    yield
    task.cancel()


# --- the page ---------------------------------------------------------------------------------------------------------


def build_page(served: ServedJudge, folder: Path) -> gr.Blocks:
    """The page and its API; what people get back as files is written to new folders in `folder`."""
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
    """Three texts, a button, examples, and the verdict."""

    def judge(prompt: str, response_a: str, response_b: str, id: str = "") -> dict:
        """The verdict on one battle: winner, p_a, p_b, both readings, whether the order mattered, what was cut."""
        try:
            return served.judge_battle(dict(zip(TEXTS, (prompt, response_a, response_b), strict=True)), id)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error

    def show_verdict(*texts: str):
        """The verdict as the page shows it, and an error in the note beside it."""
        try:
            verdict = served.judge_battle(dict(zip(TEXTS, texts, strict=True)))
        except ValueError as error:
            return NO_VERDICT, gr.Textbox(str(error), visible=True)
        return render_verdict(verdict), gr.Textbox(visible=False)

    prompt = gr.Textbox(label=TITLES["prompt"], lines=2, max_lines=8, placeholder="What was asked", elem_classes="text")
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
        list(texts), inputs, example_labels=list(labels), label="Try one", api_visibility="private", elem_id="examples"
    )
    shown = {"fn": show_verdict, "inputs": inputs, "outputs": [verdict, note], "concurrency_id": "judge"}
    shown |= {"api_visibility": "private", "show_progress_on": [verdict]}
    button.click(**shown)
    examples.load_input_event.then(**shown)
    gr.api(judge, api_name="judge", concurrency_id="judge", concurrency_limit=1)


def build_file_tab(served: ServedJudge, folder: Path) -> None:
    """A file in, two files out."""

    def read_file(path: str | None, progress: gr.Progress) -> FileVerdicts:
        """The verdicts on an uploaded file, with a progress bar."""
        if path is None:
            raise ValueError("Expected a file; found none. Choose one first.")
        # A name that nobody can guess: whoever has it can fetch the file.
        return served.judge_file(
            Path(path), folder / secrets.token_hex(16), lambda share: progress(share, desc="Reading")
        )

    def show_file(path: str | None, progress=gr.Progress()):  # noqa: B008  (how Gradio is asked for it)
        """What the page shows of a file: both results and a summary, or an error."""
        try:
            found = read_file(path, progress)
        except ValueError as error:
            return gr.File(visible=False), gr.Textbox(str(error), visible=True), gr.Textbox(visible=False)
        files = gr.File([str(found.predictions), str(found.submission)], visible=True)
        return files, gr.Textbox(visible=False), gr.Textbox(found.summary, visible=True)

    def judge_file(file: str | None, progress=gr.Progress()) -> tuple[str, str, str]:  # noqa: B008
        """predictions.parquet, submission.csv and a summary of a file of battles."""
        try:
            found = read_file(file, progress)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error
        return str(found.predictions), str(found.submission), found.summary

    limits = served.limits
    gr.Markdown(
        f"A parquet, csv or jsonl file with the columns id, prompt, response_a and response_b, up to "
        f"{limits.max_battles:,} battles and {limits.max_bytes / 1e6:g} MB. Any schema of `scripts/predict.py` will do."
    )
    upload = build_upload()
    button = gr.Button("Read the file", variant="primary", elem_id="read")
    note, summary = build_note("file_note"), build_note("summary")
    files = gr.File(label="Verdicts", file_count="multiple", visible=False, interactive=False, elem_id="files")
    turn = {"concurrency_id": "file", "concurrency_limit": 1}
    button.click(show_file, upload, [files, note, summary], api_visibility="private", show_progress_on=upload, **turn)
    hidden = [gr.File(visible=False, label=name) for name in ("predictions", "submission")]
    hidden.append(gr.Textbox(visible=False, label="summary"))
    gr.Button(visible=False).click(judge_file, upload, hidden, api_name="judge_file", **turn)


def build_upload() -> gr.File:
    """Where a file is sent; unlike Gradio's own it fetches none from an address, and leaves no empty file behind.

    Changed for this one box alone: for a subclass Gradio would write a stub beside this module.
    """
    upload = gr.File(label="Battles", file_types=FILE_TYPES, height=140, elem_id="upload")
    keep = upload.async_move_resource_to_block_cache

    async def keep_uploaded(path: str | Path | None) -> str | None:
        """The path of an uploaded file in Gradio's cache."""
        if path is not None and not Path(path).is_file():
            raise gr.Error("Expected an uploaded file; found none. Upload it first.", print_exception=False)
        return await keep(path)

    upload.async_move_resource_to_block_cache = keep_uploaded
    upload.preprocess = lambda sent: sent and sent.path
    return upload


def build_card(member: Member) -> None:
    """A member's model card with its pictures."""
    text, pictures = read_card(member.folder)
    with gr.Accordion(f"Member {member.name}", open=True):
        gr.Markdown(text, sanitize_html=True, elem_classes="card")
        if pictures:
            gr.Gallery(
                [(str(path), path.stem.replace("_", " ")) for path in pictures],
                show_label=False, columns=2, object_fit="contain", interactive=False, buttons=["fullscreen"],
            )  # fmt: skip


def build_note(name: str) -> gr.Textbox:
    """Where something is said that may hold users' words: a text box, which shows text and nothing else."""
    return gr.Textbox(visible=False, show_label=False, container=False, lines=1, max_lines=6, elem_id=name)


def load_examples() -> Iterator[tuple[str, list[str]]]:
    """Some of the demo's held-out battles: the language and the three texts."""
    battles = {battle["id"]: battle for battle in load_battles(EXAMPLES_FILE)}
    for language, id in EXAMPLES.items():
        yield language, [battles[id][name] for name in TEXTS]
