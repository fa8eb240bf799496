"""PIQA (Bisk et al., arXiv 1911.11641): which of two solutions does a language model find likelier?"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exprune_fx.errors import DataError
from exprune_fx.studies.subjects.metrics import Metric
from exprune_fx.studies.subjects.subject import Judge

HEAD = 4
"""Numbers before the tokens in a row of targets: label, first and last + 1 token of the solution, its characters."""


@dataclass(frozen=True)
class Question:
    """One goal with two solutions.

    Attributes:
        goal: what is to be done.
        solutions: two ways.
        label: which one is right, 0 or 1.
    """

    goal: str
    solutions: tuple[str, str]
    label: int


def load_questions(folder: str | os.PathLike[str]) -> list[Question]:
    """The questions of valid.jsonl, with the labels of valid-labels.lst.

    Raises:
        DataError: a file is missing, or they do not fit.
    """
    for home in (Path(folder), Path(folder) / "piqa"):
        questions, labels = home / "valid.jsonl", home / "valid-labels.lst"
        if questions.is_file() and labels.is_file():
            break
    else:
        raise DataError(f"valid.jsonl and valid-labels.lst are neither in {folder} nor in piqa", hint="give --data-dir")
    rows = [json.loads(line) for line in questions.read_text(encoding="utf-8").splitlines() if line.strip()]
    right = [int(line) for line in labels.read_text(encoding="utf-8").split()]
    if len(rows) != len(right):
        raise DataError(f"{questions} has {len(rows)} questions, {labels} {len(right)} labels", hint="fetch both again")
    return [Question(row["goal"], (row["sol1"], row["sol2"]), label) for row, label in zip(rows, right, strict=True)]


class PiqaAccuracy(Metric):
    """Share of the questions whose right solution has the higher log-likelihood behind ``Question: ... Answer:``.

    Beside it, as a further figure, the same by log-likelihood over the number of characters of the solution.
    """

    name = "PIQA accuracy"
    counts = True

    def each(self, output: Any, target: Tensor) -> Tensor:
        """[questions, 2]: right by log-likelihood, right by its mean over characters.

        Args:
            output: logits, [2 * questions, positions, vocabulary]: both solutions of a question, one after another.
            target: int64, [questions, 2, HEAD + positions].
        """
        rows = target.flatten(0, 1)
        tokens = rows[:, HEAD:]
        logs = output[:, :-1].float().log_softmax(-1).gather(2, tokens[:, 1:].unsqueeze(2)).squeeze(2)
        place = torch.arange(1, tokens.shape[1])
        counted = (place >= rows[:, 1:2]) & (place < rows[:, 2:3])
        likelihood = logs.masked_fill(~counted, 0.0).double().sum(1)
        plain = likelihood.reshape(-1, 2).argmax(1)
        normalised = (likelihood / rows[:, 3]).reshape(-1, 2).argmax(1)
        label = target[:, 0, 0]
        return torch.stack([plain == label, normalised == label], 1).double()

    def extras(self, each: Tensor) -> dict[str, float]:
        """Accuracy by length-normalised log-likelihood."""
        return {"length-normalised accuracy": float(each[:, 1].mean())}


def judge_questions(questions: Sequence[Question], tokenizer: Any, batch: int, longest: int) -> Judge:
    """These questions in batches of similar length, padded on the right.

    Args:
        questions: to ask.
        tokenizer: of transformers.
        batch: questions in one.
        longest: tokens that the model can read; a longer goal loses its beginning.
    """
    encoded = sorted((_encode(question, tokenizer, longest) for question in questions), key=_length)
    batches, targets = [], []
    for start in range(0, len(encoded), batch):
        part = encoded[start : start + batch]
        width = max(_length(pair) for pair in part)
        target = torch.zeros(len(part), 2, HEAD + width, dtype=torch.int64)
        for place, pair in enumerate(part):
            for which, row in enumerate(pair):
                target[place, which, : len(row)] = torch.tensor(row)
        targets.append(target)
        batches.append((target[:, :, HEAD:].flatten(0, 1).contiguous(),))
    return Judge(PiqaAccuracy(), batches, targets)


def _length(pair: Sequence[Sequence[int]]) -> int:
    return max(len(row) for row in pair) - HEAD


def _encode(question: Question, tokenizer: Any, longest: int) -> list[list[int]]:
    """For each solution: label, where its tokens begin and end, its characters, then all tokens."""
    rows = []
    prompt = tokenizer(f"Question: {question.goal}\nAnswer:")["input_ids"]
    for solution in question.solutions:
        answer = tokenizer(f" {solution}", add_special_tokens=False)["input_ids"]
        kept = prompt[-max(longest - len(answer), 1) :]
        tokens = (kept + answer)[:longest]
        rows.append([question.label, len(kept), len(tokens), max(len(solution), 1), *tokens])
    return rows
