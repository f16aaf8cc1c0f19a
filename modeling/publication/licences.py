"""What the names of a base say of its licence. No more than a hint: its own page has the last word."""

import re
from collections.abc import Iterable

# What a base's id says of its licence: pattern, licence, where it stands, and the Hub's name for it where it binds what
# is made from the base too. Makers license other sizes and versions otherwise, so the patterns are narrow.
LLAMA = "Llama {} Community License"
LICENCES = (
    (r"gemma(?!-?4)", "Gemma Terms of Use", "https://ai.google.dev/gemma/terms", "gemma"),
    (r"deepseek-r1-distill-qwen", "MIT", "https://opensource.org/license/mit", None),
    (
        r"qwen2(\.5)?-(0\.5|1\.5|7)b|qwen2\.5-(14|32)b|smollm",
        "Apache-2.0",
        "https://www.apache.org/licenses/LICENSE-2.0",
        None,
    ),
    (r"(^|[/-])llama-3\.3-", LLAMA.format("3.3"), "https://www.llama.com/llama3_3/license/", "llama3.3"),
    (r"(^|[/-])llama-3\.2-", LLAMA.format("3.2"), "https://www.llama.com/llama3_2/license/", "llama3.2"),
    (r"(^|[/-])llama-3\.1-", LLAMA.format("3.1"), "https://www.llama.com/llama3_1/license/", "llama3.1"),
    (r"(^|[/-])llama-3-", LLAMA.format("3"), "https://www.llama.com/llama3/license/", "llama3"),
)


def find_licence(names: Iterable[str]) -> tuple | None:
    """The entry of `LICENCES` that one of the names points to: a Hub id, where a base came from, a model's type."""
    return next((entry for entry in LICENCES for name in names if re.search(entry[0], name, re.IGNORECASE)), None)
