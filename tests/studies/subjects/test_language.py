"""OPT on characters, and PIQA with a tiny random OPT and its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import exprune_fx as ex
from exprune_fx.errors import DataError
from exprune_fx.studies.subjects import opt, piqa
from exprune_fx.studies.subjects.cifar import Sizes

transformers = pytest.importorskip("transformers")

GOALS = [("make tea", "boil water", "boil the ocean"), ("cut bread", "use a saw mill at night", "use a knife")] * 4


def tiny_opt(vocabulary: int, positions: int) -> Any:
    config = transformers.OPTConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        word_embed_proj_dim=16,
        ffn_dim=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=positions,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.OPTForCausalLM(config).eval()


def write_text(folder: Path) -> Path:
    """A text and a model of its characters."""
    vocabulary = list("abcdefgh")
    numbers = torch.randint(0, 8, (12_000,), generator=torch.Generator().manual_seed(0))
    (folder / "input.txt").write_text("".join(vocabulary[number] for number in numbers))
    model = tiny_opt(8, 160)
    torch.save(
        {"config": model.config.to_dict(), "vocab": vocabulary, "state_dict": model.state_dict()}, folder / "o.pt"
    )
    return folder / "o.pt"


def test_windows_of_characters(tmp_path: Path) -> None:
    weights = write_text(tmp_path)
    subject = opt.make_opt_characters(tmp_path, weights, Sizes(3, 5, 4), seed=0)
    assert [batch[0].shape for batch in subject.test.batches] == [(4, 128)]
    assert subject.selection.examples == 5
    text = (tmp_path / "input.txt").read_text()
    shown = "".join("abcdefgh"[number] for number in subject.test.batches[0][0].flatten())
    assert shown == text[10_800 : 10_800 + 4 * 128]  # the first of the last tenth
    last = "".join("abcdefgh"[number] for number in subject.selection.batches[0][0][-1])
    assert text[10_800:].find(last) // 128 == 8  # the ninth and last window of the held-out text
    with pytest.raises(DataError, match="9 windows"):
        opt.make_opt_characters(tmp_path, weights, Sizes(3, 5, 5), seed=0)
    assert torch.equal(subject.test.targets[0][:, :-1], subject.test.batches[0][0][:, 1:])
    each = subject.test.each(subject.model)
    assert 0 <= subject.test.metric.value(each) < 0.5
    assert subject.test.metric.extras(each)["perplexity"] == pytest.approx(8, rel=0.3)  # a random model of 8 characters
    with pytest.raises(DataError, match="holds no small OPT"):
        opt.make_opt_characters(tmp_path, tmp_path / "input.txt", Sizes(3, 5, 4), seed=0)
    (tmp_path / "input.txt").write_text("abcz" * 3000)
    with pytest.raises(DataError, match="'z'"):
        opt.make_opt_characters(tmp_path, weights, Sizes(3, 5, 4), seed=0)


def write_piqa(folder: Path) -> None:
    rows = [{"goal": goal, "sol1": one, "sol2": other} for goal, one, other in GOALS]
    (folder / "valid.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    (folder / "valid-labels.lst").write_text("\n".join(str(number % 2) for number in range(len(rows))) + "\n")


def write_model(folder: Path) -> None:
    """A random OPT with a tokenizer of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = sorted({word for row in GOALS for text in row for word in text.split()} | {"Question", ":", "Answer"})
    numbers = {"<unk>": 0, **{word: place + 1 for place, word in enumerate(words)}}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
    tiny_opt(len(numbers), 40).save_pretrained(folder)


def test_piqa_by_hand(tmp_path: Path) -> None:
    write_piqa(tmp_path)
    write_model(tmp_path / "model")
    subject = opt.make_opt_piqa(tmp_path, tmp_path / "model", Sizes(4, 4, 4))
    assert (subject.selection.examples, subject.test.examples) == (4, 4)
    each = subject.selection.each(subject.model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model", local_files_only=True)

    def likelihood(goal: str, solution: str) -> float:
        """One solution alone, unpadded."""
        prompt = tokenizer(f"Question: {goal}\nAnswer:")["input_ids"]
        tokens = torch.tensor([prompt + tokenizer(f" {solution}", add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            logs = subject.model(tokens)[0].log_softmax(-1)
        return sum(float(logs[place - 1, tokens[0, place]]) for place in range(len(prompt), tokens.shape[1]))

    expected = []
    for number, (goal, one, other) in enumerate(GOALS[:4]):
        sums = [likelihood(goal, one), likelihood(goal, other)]
        means = [sums[0] / len(one), sums[1] / len(other)]
        label = number % 2
        expected.append([float(pair.index(max(pair)) == label) for pair in (sums, means)])
    # The judge sorts by length: the same questions in another order.
    assert sorted(each.tolist()) == sorted(expected)
    assert "length-normalised accuracy" in subject.selection.metric.extras(each)
    gm = ex.capture(subject.model, subject.args, dynamic_shapes=subject.dynamic_shapes)
    torch.testing.assert_close(subject.selection.each(gm), each)


def test_piqa_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="valid"):
        piqa.load_questions(tmp_path)
    write_piqa(tmp_path)
    assert piqa.load_questions(tmp_path)[1] == piqa.Question(*GOALS[1][:1], GOALS[1][1:], 1)
    (tmp_path / "valid-labels.lst").write_text("0\n")
    with pytest.raises(DataError, match="8 questions"):
        piqa.load_questions(tmp_path)
    with pytest.raises(DataError, match="holds no OPT"):
        opt.make_opt_piqa(tmp_path, tmp_path, Sizes(2, 2, 2))
