"""The page is well-formed, self-contained, and escapes what it shows."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import nn

from exprune_fx import Calibrated, ExpruneError, capture, explain, measure
from tests.report import tiny

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Checker(HTMLParser):
    """Collects what is open, every tag, its attributes, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data


def checked(path: Path) -> Checker:
    checker = Checker()
    checker.feed(path.read_text(encoding="utf-8"))
    checker.close()
    assert checker.open == []
    return checker


def test_the_page_is_whole_and_fetches_nothing(tmp_path: Path) -> None:
    staged = tiny.staged(Calibrated(0.1))
    found = explain(staged, measure(staged, tiny.examples()))
    path = tmp_path / "page.html"
    found.html(path)
    page = checked(path)
    assert not page.tags & {"script", "link", "img", "iframe", "object"}
    assert not page.attributes & {"src", "href", "onclick"}
    assert "url(" not in path.read_text()
    assert "@import" not in path.read_text()
    assert all(site.name in page.text for site in found.sites)
    assert found.graph.split("\n")[2] in page.text


def test_names_are_escaped(tmp_path: Path) -> None:
    model = nn.Sequential()
    model.add_module("<b>&", nn.Linear(4, 4))
    model.add_module("relu", nn.ReLU())
    path = tmp_path / "page.html"
    explain(capture(model, (torch.zeros(1, 4),))).html(path)
    page = checked(path)
    assert "b" not in page.tags
    assert "<b>&" in page.text


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExpruneError, match="no-such-folder"):
        explain(tiny.captured()).html(tmp_path / "no-such-folder" / "page.html")
