"""Japanese arithmetic: the last number counts, and only in a Japanese text."""

import re
import unicodedata

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def process_results(doc, results):
    """Both metrics of one answer (EvoLLM, arXiv:2403.13187, section 4.1)."""
    text = results[0]
    right = last_number(text) == float(doc["answer_number"])
    return {"acc": float(right and is_japanese(text)), "acc_any_language": float(right)}


def last_number(text):
    """The last number of a text, full-width digits included; None where there is none."""
    found = _NUMBER.findall(unicodedata.normalize("NFKC", text))
    return float(found[-1].replace(",", "")) if found else None


def is_japanese(text):
    """Whether most letters are kana or kanji, some of them kana.

    The authors ask fastText's language model instead, which would be another download.
    """
    letters = [unicodedata.name(letter, "") for letter in text if letter.isalpha()]
    kana = sum(name.startswith(("HIRAGANA", "KATAKANA")) for name in letters)
    kanji = sum(name.startswith("CJK") for name in letters)
    return kana > 0 and 2 * (kana + kanji) > len(letters)
