"""The published readers: equal to the classes they re-state, and wrong where those are."""

import pytest
import torch
from tiny_rewards import card_7b, card_34b, llama_tokenizer

from starling_nb.data.chat import mistral_tokenizer, train_tokenizer
from starling_nb.reward.model import RewardModel, score_sequences
from starling_nb.reward.published import (
    PAD_ID_34B,
    first_padding_reader,
    pad_id_7b,
    published_rewards,
    token_rewards,
)

BOS = 1
TEXTS = [
    "[INST] Hello? [/INST] Hi, how can I help you?</s>",
    "[INST] Why? [/INST] So.</s>",
    "[INST] Tell me all of it, one thing after another. [/INST] It is a long and dull story.</s>",
]


@pytest.fixture(scope="module")
def model():
    """A tiny random Llama with the vocabulary of `llama_tokenizer`."""
    torch.manual_seed(0)
    card = card_34b(vocab_size=32010)
    model = RewardModel(card.config).eval()
    model.load_state_dict(card.state_dict())
    return model


@pytest.fixture
def tokenizer():
    return llama_tokenizer()


@pytest.fixture
def true_scores(model, tokenizer):
    return score_sequences(model, tokenizer(TEXTS).input_ids)


def rewards(model, tokenizer, pad_id, texts=TEXTS, **options):
    return published_rewards(first_padding_reader(model, pad_id), tokenizer, texts, **options)


def close(a, b):
    return torch.allclose(a, b, rtol=1e-4, atol=1e-4)


def test_the_first_id_of_the_tokenised_padding_token_is_bos(tokenizer):
    """Executed, not inferred: Llama's tokenizer puts BOS before <unk>."""
    assert mistral_tokenizer()("<unk>").input_ids == [1, 0]
    assert tokenizer.pad_token_id == 0
    assert pad_id_7b(tokenizer) == BOS


def test_the_readers_are_those_of_the_cards_classes(tokenizer):
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    batch = (batch["input_ids"], batch["attention_mask"])
    cards = (card_34b(vocab_size=32010), PAD_ID_34B), (card_7b(vocab_size=32010), BOS)
    for card, pad_id in cards:
        twin = RewardModel(card.config).eval()
        trunk = {f"transformer.{n}": w for n, w in card.transformer.state_dict().items()}
        twin.load_state_dict(trunk | {"v_head.weight": card.v_head.weight})
        with torch.no_grad():
            torch.testing.assert_close(first_padding_reader(twin, pad_id)(*batch), card(*batch))


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("padding", ["longest", "max_length"])
def test_the_34b_reader_is_right_where_the_text_holds_no_zero(
    model, tokenizer, true_scores, padding, batch_size
):
    found = rewards(model, tokenizer, PAD_ID_34B, padding=padding, batch_size=batch_size)
    assert close(found, true_scores)


def test_the_34b_reader_stops_at_a_padding_id_inside_the_text(model, tokenizer):
    """It reads what stands before "<unk>"; ours reads the end."""
    text = "[INST] What does <unk> mean? [/INST] It is the token of what is unknown.</s>"
    (ids,) = tokenizer([text]).input_ids
    place = ids.index(PAD_ID_34B)
    assert 0 < place < len(ids) - 1
    found = rewards(model, tokenizer, PAD_ID_34B, [text])
    assert close(found, score_sequences(model, [ids[:place]]))
    assert not close(found, score_sequences(model, [ids]))


def test_the_34b_reader_is_right_by_accident_under_left_padding(model, tokenizer, true_scores):
    batch = tokenizer(TEXTS, padding=True, padding_side="left", return_tensors="pt")
    assert batch["input_ids"][1, 0] == PAD_ID_34B
    read = first_padding_reader(model, PAD_ID_34B)
    assert close(read(batch["input_ids"], batch["attention_mask"]), true_scores)


def test_the_7b_reader_reads_the_last_place_of_a_batch_whatever_stands_there(model, tokenizer):
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    batch = (batch["input_ids"], batch["attention_mask"])
    assert torch.equal(
        first_padding_reader(model, BOS)(*batch), token_rewards(model, *batch)[:, -1]
    )


def test_the_7b_readers_scores_depend_on_the_batch_mates(model, tokenizer, true_scores):
    alone = rewards(model, tokenizer, BOS, padding="longest", batch_size=1)
    together = rewards(model, tokenizer, BOS, padding="longest", batch_size=3)
    assert close(alone, true_scores)  # no padding, so the last place is the right one
    longest = max(range(3), key=lambda i: len(TEXTS[i]))
    differ = [not close(alone[i], together[i]) for i in range(3)]
    assert differ == [i != longest for i in range(3)]


def test_the_7b_reader_agrees_with_itself_at_one_width_and_is_not_right(
    model, tokenizer, true_scores
):
    """Padded to 2 048, as the card does it: a score of a padding token's place."""
    one = rewards(model, tokenizer, BOS)
    three = rewards(model, tokenizer, BOS, batch_size=3)
    other = rewards(model, tokenizer, BOS, max_length=512)
    assert close(one, three)
    assert not close(one, true_scores)
    assert not close(one, other)


def test_the_recipe_cuts_at_the_left_and_leaves_the_tokenizer_as_it_was(model, tokenizer):
    long = TEXTS[2].replace("story", "story " * 40)
    found = rewards(model, tokenizer, PAD_ID_34B, [long], max_length=24)
    ids = tokenizer(long).input_ids
    assert close(found, score_sequences(model, [[BOS, *ids[-23:]]]))
    assert (tokenizer.truncation_side, tokenizer.padding_side) == ("right", "right")
    assert tokenizer(long).input_ids == ids


def test_another_tokenizer_has_another_padding_id():
    """Without a BOS in front, the 7B rule finds the padding token's own id."""
    trained = train_tokenizer(["a b c"], 280)
    trained.backend_tokenizer.post_processor = None
    assert pad_id_7b(trained) == trained.pad_token_id
