"""Languages by the names that battles give them, and their codes on the Hub."""

import re
from collections.abc import Iterable

# ISO 639-1; names as in the demo's and WSDM's battles.
LANGUAGES = """
af Afrikaans, am Amharic, ar Arabic, az Azerbaijani, be Belarusian, bg Bulgarian, bn Bengali, bs Bosnian, ca Catalan,
cs Czech, cy Welsh, da Danish, de German, el Greek, en English, eo Esperanto, es Spanish, et Estonian, eu Basque,
fa Persian, fi Finnish, fr French, ga Irish, gl Galician, gu Gujarati, he Hebrew, hi Hindi, hr Croatian, hu Hungarian,
hy Armenian, id Indonesian, is Icelandic, it Italian, ja Japanese, ka Georgian, kk Kazakh, km Khmer, kn Kannada,
ko Korean, la Latin, lt Lithuanian, lv Latvian, mk Macedonian, ml Malayalam, mn Mongolian, mr Marathi, ms Malay,
my Burmese, ne Nepali, nl Dutch, no Norwegian, pa Punjabi, pl Polish, ps Pashto, pt Portuguese, ro Romanian,
ru Russian, si Sinhala, sk Slovak, sl Slovenian, so Somali, sq Albanian, sr Serbian, sv Swedish, sw Swahili, ta Tamil,
te Telugu, tg Tajik, th Thai, tl Tagalog, tr Turkish, uk Ukrainian, ur Urdu, uz Uzbek, vi Vietnamese, zh Chinese
"""
CODES = {name: code for code, name in (entry.split() for entry in LANGUAGES.split(","))}


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
