"""Report pages, rendered and taken apart."""

from __future__ import annotations

import json
from html.parser import HTMLParser

from evomerge.report.pages.report import report_page


class Page(HTMLParser):
    """A page taken apart: its tags, the figures' JSON, and what is left to read."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.figures, self.words, self.scripts = [], {}, [], []
        self._script = None
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._script = dict(attributes) if tag in ("script", "style") else None

    def handle_endtag(self, tag):
        self._script = None

    def handle_data(self, data):
        if self._script is None:
            self.words.append(data)
        elif self._script.get("type") == "application/json":
            self.figures[self._script["id"].removesuffix("-data")] = json.loads(data)
        else:
            self.scripts.append(data)


def page_of(run):
    return Page(report_page(run.study))


def trace(figure, name):
    [found] = [t for t in figure["data"] if t.get("name") == name]
    return found
