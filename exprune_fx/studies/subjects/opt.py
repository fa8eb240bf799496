"""OPT: a small one on characters, by next-token accuracy and perplexity; anybody's weights by PIQA."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from exprune_fx.errors import DataError
from exprune_fx.extras import optional_module
from exprune_fx.studies.subjects import piqa
from exprune_fx.studies.subjects.cifar import Sizes
from exprune_fx.studies.subjects.metrics import TokenAccuracy
from exprune_fx.studies.subjects.subject import Args, Judge, Subject

NAME = "opt"
TRAIN_SHARE = 0.9
WINDOW, BATCH = 128, 16
QUESTIONS = 4

Folder = str | os.PathLike[str]


class Logits(nn.Module):
    """A language model of transformers that takes tokens and gives logits, nothing else.

    Padding on the right needs no mask: attention is causal, and nothing is read at padded positions.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """int64 [rows, positions] to float32 [rows, positions, vocabulary]."""
        logits: Tensor = self.model(input_ids=tokens, use_cache=False).logits
        return logits


def _transformers() -> Any:
    return optional_module("transformers", "OPT needs transformers", "transformers")


# --- characters -------------------------------------------------------------------------------------------------------


def make_opt_characters(data_dir: Folder, weights: Folder | None, sizes: Sizes, seed: int) -> Subject:
    """The small OPT on tinyshakespeare.

    Calibration takes windows of 128 characters of the first 90 % of the text, which it was trained on, drawn by the
    seed. Judging takes the first windows of the last 10 %, selection the last of them: on text that it was trained on,
    guards would seem to cost less than they do.

    Args:
        data_dir: holds input.txt, itself or in its subfolder tinyshakespeare.
        weights: file with ``config``, ``vocab`` and ``state_dict``.
        sizes: of the three parts, in windows.
        seed: of the draw.

    Raises:
        DataError: text or weights are missing.
    """
    if weights is None:
        raise DataError("opt needs trained weights", hint="give --weights FILE, or --model-dir DIR for PIQA")
    model, vocabulary = _load_characters(weights)
    tokens = _encode(_read_text(data_dir), vocabulary)
    border = int(TRAIN_SHARE * len(tokens))
    train, held_out = _windows(tokens[:border]), _windows(tokens[border:])
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    calibration = train[order[: sizes.calibration]]
    if sizes.test + sizes.selection > len(held_out):
        raise DataError(
            f"the held-out text has {len(held_out)} windows, fewer than {sizes.test} to judge and {sizes.selection} to "
            "select by",
            hint="ask for fewer",
        )
    selection = _judge(held_out[len(held_out) - sizes.selection :])
    test = _judge(held_out[: sizes.test])
    return Subject(
        name=NAME,
        title="OPT (4 layers, hidden 256, characters), tinyshakespeare",
        about=f"windows of {WINDOW} characters: {len(calibration)} of the training text for calibration, "
        f"{selection.examples} of held-out text for selection, judged on {test.examples} others of it "
        f"({test.examples * WINDOW:,} positions)",
        model=Logits(model).eval(),
        args=(calibration[:2, :-1].contiguous(),),
        dynamic_shapes=({0: Dim.AUTO},),
        calibration=[(part[:, :-1].contiguous(),) for part in calibration.split(BATCH)],
        selection=selection,
        test=test,
    )


def _load_characters(path: Folder) -> tuple[nn.Module, Sequence[str]]:
    transformers = _transformers()
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        model = transformers.OPTForCausalLM(transformers.OPTConfig(**saved["config"])).float()
        model.load_state_dict(saved["state_dict"])
    except Exception as error:  # torch raises whatever its archive's reader raises
        raise DataError(
            f"{os.fspath(path)} holds no small OPT: {type(error).__name__}: {error}",
            hint="give a file with config, vocab and state_dict",
        ) from error
    return model.eval(), saved["vocab"]


def _read_text(folder: Folder) -> str:
    for path in (Path(folder) / "input.txt", Path(folder) / "tinyshakespeare" / "input.txt"):
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise DataError(f"input.txt is neither in {folder} nor in its subfolder tinyshakespeare", hint="give --data-dir")


def _encode(text: str, vocabulary: Sequence[str]) -> Tensor:
    numbers = {character: number for number, character in enumerate(vocabulary)}
    if unknown := set(text) - numbers.keys():
        raise DataError(
            f"the text has characters that the model lacks: {sorted(unknown)[:5]}", hint="give its own text"
        )
    return torch.tensor([numbers[character] for character in text])


def _windows(tokens: Tensor) -> Tensor:
    """[windows, WINDOW + 1]: what is read, and one further, which is only predicted."""
    return tokens[: (len(tokens) - 1) // WINDOW * WINDOW + 1].unfold(0, WINDOW + 1, WINDOW)


def _judge(windows: Tensor) -> Judge:
    split = windows.split(BATCH)
    return Judge(TokenAccuracy(), [(part[:, :-1].contiguous(),) for part in split], [part[:, 1:] for part in split])


# --- PIQA -------------------------------------------------------------------------------------------------------------


def make_opt_piqa(data_dir: Folder, model_dir: Folder, sizes: Sizes) -> Subject:
    """Any OPT of transformers on PIQA: the first half of valid selects, the second half judges.

    Args:
        data_dir: holds valid.jsonl and valid-labels.lst, itself or in its subfolder piqa.
        model_dir: of ``save_pretrained``, with its tokenizer.
        sizes: at most so many questions in each part; calibration takes those of the selection part.

    Raises:
        DataError: questions, model or tokenizer are missing.
    """
    transformers = _transformers()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(os.fspath(model_dir), local_files_only=True)
        model = transformers.OPTForCausalLM.from_pretrained(os.fspath(model_dir), local_files_only=True).float()
    except Exception as error:  # transformers raises whatever its readers raise
        raise DataError(
            f"{os.fspath(model_dir)} holds no OPT with its tokenizer: {type(error).__name__}: {error}",
            hint="give a folder that save_pretrained wrote",
        ) from error
    questions = piqa.load_questions(data_dir)
    half = len(questions) // 2
    longest = int(model.config.max_position_embeddings)
    selection = piqa.judge_questions(questions[:half][: sizes.selection], tokenizer, QUESTIONS, longest)
    test = piqa.judge_questions(questions[half:][: sizes.test], tokenizer, QUESTIONS, longest)
    calibration: list[Args] = list(selection.batches[: max(sizes.calibration // QUESTIONS, 1)])
    return Subject(
        name=f"{NAME}-piqa",
        title=f"OPT ({model.config.num_hidden_layers} layers, hidden {model.config.hidden_size}), PIQA",
        about=f"{selection.examples} questions of valid for selection (calibration on {len(calibration)} batches of "
        f"them), judged on {test.examples} others",
        model=Logits(model).eval(),
        args=calibration[0],
        dynamic_shapes=({0: Dim.AUTO, 1: Dim.AUTO},),
        calibration=calibration,
        selection=selection,
        test=test,
    )
