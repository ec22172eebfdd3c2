"""Packed lists: their layout, their encoding, and that they equal separate sequences."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_lists import AWKWARD, DOUBLE, colour_tokenizer, mistral, ranked_row
from tiny_rewards import llama_tokenizer
from torch.nn.utils.rnn import pad_sequence

from starling_nb.data.chat import encode, mistral_tokenizer
from starling_nb.reward.kwise import plackett_luce_nll
from starling_nb.reward.model import RewardModel
from starling_nb.reward.packing import (
    PackedList,
    block_mask,
    collate,
    encode_list,
    encode_rows,
    pack_list,
    score_lists,
    shared_tokens,
)
from starling_nb.reward.templates import encode_conversation


def random_lists(sizes: list[tuple[int, list[int]]]) -> list[tuple[list[int], list[list[int]]]]:
    """Prompts and answers of the given lengths, in random ids."""
    generator = torch.Generator().manual_seed(1)

    def draw(length):
        return torch.randint(5, 300, (length,), generator=generator).tolist()

    return [(draw(prompt), [draw(size) for size in answers]) for prompt, answers in sizes]


SHAPES = [(6, [3, 1, 5, 2, 8, 4, 4]), (1, [2, 9]), (11, [1, 1, 1]), (3, [7])]


def test_a_packed_list_by_hand():
    packed = pack_list([10, 11], [[20], [30, 31, 32]])
    assert packed.input_ids.tolist() == [10, 11, 20, 30, 31, 32]
    assert packed.position_ids.tolist() == [0, 1, 2, 2, 3, 4]
    assert packed.segments.tolist() == [0, 0, 1, 2, 2, 2]
    assert packed.ends.tolist() == [2, 5]
    sees = block_mask(packed.segments[None])[0, 0].int().tolist()
    assert sees == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 0, 1, 0, 0],
        [1, 1, 0, 1, 1, 0],
        [1, 1, 0, 1, 1, 1],
    ]


def test_padding_is_seen_by_nobody_and_sees_something():
    segments = [pack_list(*parts).segments for parts in random_lists(SHAPES)]
    masks = block_mask(pad_sequence(segments, batch_first=True))
    for mask, (prompt, answers) in zip(masks[:, 0], SHAPES, strict=True):
        tokens = prompt + sum(answers)
        assert not mask[:tokens, tokens:].any()
        assert mask.any(-1).all()
    assert masks.shape == (4, 1, 33, 33)


@pytest.mark.parametrize("parts", [([], [[1]]), ([1], []), ([1], [[2], []])])
def test_lists_without_tokens_are_refused(parts):
    with pytest.raises(ValueError, match="expected a prompt and answers with tokens"):
        pack_list(*parts)


def test_tokens_of_a_packed_list_are_counted_exactly():
    """P + ΣA, against K·P + ΣA in separate rows and 42 rows in 21 pairs."""
    prompt, answers = SHAPES[0]
    (parts,) = random_lists([SHAPES[0]])
    assert len(pack_list(*parts).input_ids) == prompt + sum(answers)
    assert collate([pack_list(*parts)])["input_ids"].numel() == 6 + 27


@pytest.mark.parametrize(("dtype", "tolerance"), [(DOUBLE, 1e-6), (torch.float32, 1e-5)])
def test_packed_lists_equal_separate_sequences(dtype, tolerance):
    """Loss and every gradient, several ragged lists at once, grouped-query attention."""
    lists = random_lists(SHAPES)
    packed = RewardModel.from_policy(mistral(dtype=dtype)).to(dtype)
    separate = copy.deepcopy(packed)

    batch = collate([pack_list(*parts) for parts in lists])
    mask = batch.pop("mask")
    together = packed(**batch)
    plackett_luce_nll(together, mask).mean().backward()

    alone = [
        torch.cat(
            [
                separate(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long))
                for ids in (prompt + answer for answer in answers)
            ]
        )
        for prompt, answers in lists
    ]
    torch.stack([plackett_luce_nll(row[None])[0] for row in alone]).mean().backward()

    assert mask.sum(-1).tolist() == [len(answers) for _, answers in SHAPES]
    torch.testing.assert_close(
        together[mask], torch.cat(alone), rtol=tolerance, atol=tolerance, check_dtype=False
    )
    largest = max(p.grad.abs().max() for p in separate.parameters())
    for (name, ours), theirs in zip(packed.named_parameters(), separate.parameters(), strict=True):
        assert ours.grad.isfinite().all(), name
        difference = (ours.grad - theirs.grad).abs().max() / largest
        assert difference < tolerance, name


def test_score_lists_keeps_the_order():
    model = RewardModel.from_policy(mistral()).eval()
    lists = [pack_list(*parts) for parts in random_lists(SHAPES)]
    scores, mask = score_lists(model, lists, batch_size=3)
    for row, packed in enumerate(lists):
        batch = collate([packed])
        batch.pop("mask")
        torch.testing.assert_close(scores[row][mask[row]], model(**batch)[0].detach())
    assert (scores[~mask] == 0).all()


@pytest.mark.parametrize("kind", ["own", "mistral"])
@settings(deadline=None, max_examples=50)
@given(st.lists(st.text(max_size=12), min_size=1, max_size=4))
def test_a_list_is_encoded_like_its_conversations(kind, texts):
    tokenizer = colour_tokenizer() if kind == "own" else mistral_tokenizer()
    asked = [
        {"role": "user", "content": "Which <|end_of_turn|>?"},
        {"role": "assistant", "content": "So."},
        {"role": "user", "content": "And?"},
    ]
    text = "\n\nHuman: Which <|end_of_turn|>?\n\nAssistant: So.\n\nHuman: And?\n\nAssistant: "
    answers = AWKWARD + texts
    prompt_ids, answers_ids = encode_list(tokenizer, text, answers)
    assert prompt_ids == encode(tokenizer, asked, add_generation_prompt=True)
    for answer, ids in zip(answers, answers_ids, strict=True):
        whole = encode(tokenizer, [*asked, {"role": "assistant", "content": answer}], False)
        assert prompt_ids + ids == whole


def parts(packed: PackedList) -> tuple[list[int], list[list[int]]]:
    """Prompt and answers out of a packed list."""
    segments = [
        packed.input_ids[packed.segments == k].tolist() for k in range(len(packed.ends) + 1)
    ]
    return segments[0], segments[1:]


def test_truncation_keeps_the_prompts_end_and_the_answers_start():
    tokenizer = colour_tokenizer()
    rows = [
        ranked_row("a b", ["c d", "e f"]),
        ranked_row("p " * 150, ["c d", "e f"]),
        ranked_row("a b", ["x " * 150, "e f"]),
        ranked_row("p " * 150, ["x " * 150, "y " * 150, "e f"]),
    ]
    whole = [parts(packed) for packed in encode_rows(rows, tokenizer, 1000)[0]]
    limit = 200
    lists, truncation = encode_rows(rows, tokenizer, limit)
    assert truncation._asdict() == {
        "prompts": 2,
        "answers": 3,
        "of_prompts": 4,
        "of_answers": 9,
    }
    for packed, (prompt, answers) in zip(lists, whole, strict=True):
        kept, kept_answers = parts(packed)
        assert kept == prompt[-len(kept) :]
        assert all(
            kept_answer == answer[: len(kept_answer)]
            for kept_answer, answer in zip(kept_answers, answers, strict=True)
        )
        assert len(kept) == len(prompt) or len(kept) >= limit // 2
        longest = max(map(len, kept_answers))
        assert len(kept) + longest <= limit
        cut = (kept, kept_answers) != (prompt, answers)
        assert not cut or len(kept) + longest == limit  # nothing is cut without need
    assert [parts(packed) == before for packed, before in zip(lists, whole, strict=True)] == [
        True,
        False,
        False,
        False,
    ]


@pytest.mark.parametrize("template", ["llama2_starling", "chatml_yi"])
@settings(deadline=None, max_examples=50)
@given(st.lists(st.text(max_size=12), min_size=1, max_size=4))
def test_a_list_is_encoded_like_its_conversations_in_other_templates(template, texts):
    tokenizer, answers = llama_tokenizer(), AWKWARD + texts
    turns = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "So."}]
    turns.append({"role": "user", "content": "And </s>?"})
    text = "\n\nHuman: Which?\n\nAssistant: So.\n\nHuman: And </s>?\n\nAssistant: "
    prompt_ids, answers_ids = encode_list(tokenizer, text, answers, template)
    for answer, ids in zip(answers, answers_ids, strict=True):
        talk = [*turns, {"role": "assistant", "content": answer}]
        assert (prompt_ids + ids, False) == encode_conversation(tokenizer, talk, template)
    assert len({ids[0] for ids in answers_ids}) > 1  # all that is shared is in the prompt


def test_shared_tokens_leave_one_to_each():
    assert shared_tokens([[1, 2, 3, 4], [1, 2, 5]]) == 2
    assert shared_tokens([[1, 2, 3], [1, 2, 3]]) == 2
    assert shared_tokens([[1, 2], [1, 2, 3]]) == 1
    assert shared_tokens([[1], [2, 3]]) == 0


@pytest.mark.parametrize("template", ["llama2_starling", "chatml_yi"])
def test_a_cut_prompt_begins_as_in_scoring(template):
    """The longest answer's conversation is cut as `encode_conversation` cuts it, with its BOS."""
    tokenizer, limit = llama_tokenizer(), 60
    long = ranked_row("p " * 100, ["c d e f", "g"])
    (packed,), truncation = encode_rows([long], tokenizer, limit, template)
    prompt, (longest, _) = parts(packed)
    talk = [{"role": "user", "content": "p " * 100}, {"role": "assistant", "content": "c d e f"}]
    assert (prompt + longest, True) == encode_conversation(tokenizer, talk, template, limit)
    assert truncation._asdict() == {"prompts": 1, "answers": 0, "of_prompts": 1, "of_answers": 2}


def test_a_prompt_cut_to_one_token_is_its_bos():
    tokenizer = llama_tokenizer()
    (packed,), _ = encode_rows([ranked_row("p p p", ["c d"])], tokenizer, 2, "llama2_starling")
    assert parts(packed)[0] == [tokenizer.bos_token_id]
