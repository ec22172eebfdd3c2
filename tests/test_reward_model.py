"""The reward model: where the score is read, what is kept of a policy, files, scoring."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    MistralForSequenceClassification,
)

from starling_nb.data.chat import encode, train_tokenizer
from starling_nb.reward.model import (
    RewardModel,
    encode_conversations,
    last_attended,
    reward_function,
    score,
    score_sequences,
)

PAD = 4
VOCABULARY = 280


def mistral(seed: int = 0) -> MistralForCausalLM:
    torch.manual_seed(seed)
    config = MistralConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        sliding_window=None,
        tie_word_embeddings=True,
        initializer_range=0.2,
        pad_token_id=PAD,
    )
    return MistralForCausalLM(config).eval()


def gpt2(seed: int = 0) -> GPT2LMHeadModel:
    """A trunk with absolute positions, which notices a position that is off by one."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=256,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=3,
    )
    return GPT2LMHeadModel(config).eval()


def sequences(lengths: list[int], seed: int = 0) -> list[list[int]]:
    """Random ids; the pad id is among them, since text may hold it where its id is shared."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(0, VOCABULARY, (length,), generator=generator).tolist() for length in lengths
    ]


def padded(ids: list[list[int]], side: str, extra: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T) ids and mask, `extra` columns wider than the longest row."""
    width = max(map(len, ids)) + extra
    rows = [([PAD] * (width - len(row)), row) for row in ids]
    ones = [([0] * (width - len(row)), [1] * len(row)) for row in ids]
    order = (lambda pad, row: pad + row) if side == "left" else (lambda pad, row: row + pad)
    return (
        torch.tensor([order(*row) for row in rows]),
        torch.tensor([order(*row) for row in ones]),
    )


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["What is the capital of France? It is Paris."] * 3, VOCABULARY)


@pytest.fixture(scope="module")
def model() -> RewardModel:
    return RewardModel.from_policy(mistral()).eval()


@pytest.mark.parametrize("policy", [mistral, gpt2])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("extra", [0, 5])
def test_padding_does_not_change_a_score(policy, side, extra):
    model = RewardModel.from_policy(policy()).eval()
    ids = sequences([9, 1, 4, 14, 14])
    alone = torch.cat(
        [model(torch.tensor([row]), torch.ones(1, len(row), dtype=torch.long)) for row in ids]
    )
    assert alone.std() > 0.1
    torch.testing.assert_close(model(*padded(ids, side, extra)), alone, rtol=1e-5, atol=1e-5)


def test_left_padding_gives_finite_gradients():
    model = RewardModel.from_policy(mistral())
    model(*padded(sequences([2, 11]), "left", extra=3)).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_last_attended_by_hand():
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1], [1, 0, 0, 0]])
    assert last_attended(mask).tolist() == [1, 3, 3, 0]
    assert last_attended(mask.bool()).tolist() == [1, 3, 3, 0]


def test_ends_read_other_tokens(model):
    """In one causal row, the score at token t is that of the row cut after t."""
    (ids,) = sequences([12])
    ends = torch.tensor([[2, 11, 7]])
    at_once = model(torch.tensor([ids]), torch.ones(1, 12, dtype=torch.long), ends=ends)
    one_by_one = score_sequences(model, [ids[:3], ids, ids[:8]])
    assert at_once.shape == (1, 3)
    torch.testing.assert_close(at_once[0], one_by_one, rtol=1e-5, atol=1e-5)


def test_scores_equal_transformers_own_classifier(model):
    """Oracle: the same weights in MistralForSequenceClassification, rows without a pad id."""
    config = copy.deepcopy(model.config)
    config.num_labels = 1
    oracle = MistralForSequenceClassification(config).eval()
    oracle.model.load_state_dict(model.transformer.state_dict())
    oracle.score.load_state_dict(model.v_head.state_dict())
    ids, mask = padded([[token + 5 for token in row] for row in sequences([8, 3, 5])], "right")
    ids = ids.clamp(max=VOCABULARY - 1).masked_fill(mask == 0, PAD)
    expected = oracle(ids, mask).logits[:, 0]
    torch.testing.assert_close(model(ids, mask), expected, rtol=1e-5, atol=1e-5)


def test_head_sees_one_vector_a_row(model):
    shapes = []
    hook = model.v_head.register_forward_hook(lambda _, inputs, __: shapes.append(inputs[0].shape))
    model(*padded(sequences([9, 4]), "right"))
    hook.remove()
    assert shapes == [(2, 1, 32)]


def test_trunk_is_a_whole_copy_of_the_policys():
    policy = mistral()
    before = copy.deepcopy(policy.state_dict())
    policy.requires_grad_(False)  # as a reference policy may be
    model = RewardModel.from_policy(policy, seed=3)
    kept = {f"model.{name}": value for name, value in model.transformer.state_dict().items()}
    assert kept.keys() == before.keys() - {"lm_head.weight"}
    assert all(torch.equal(kept[name], before[name]) for name in kept)
    assert model.v_head.bias is None
    assert all(p.requires_grad for p in model.parameters())

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    assert policy.config.use_cache


def test_head_depends_on_the_seed_only():
    policy = mistral()
    first, again, other = (RewardModel.from_policy(policy, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.v_head.weight, again.v_head.weight)
    assert not torch.equal(first.v_head.weight, other.v_head.weight)


@pytest.mark.parametrize("policy", [mistral, gpt2])
def test_saved_and_loaded_weights_are_the_same(policy, tmp_path):
    model = RewardModel.from_policy(policy()).eval()
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    loaded = RewardModel.from_pretrained(tmp_path)
    assert not loaded.training
    assert type(loaded.config) is type(model.config)
    theirs, ours = loaded.state_dict(), model.state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)
    assert all(a.dtype == b.dtype for a, b in zip(theirs.values(), ours.values(), strict=True))
    batch = padded(sequences([5, 9]), "right")
    torch.testing.assert_close(loaded(*batch), model(*batch), rtol=1e-6, atol=1e-6)


def test_layout_is_that_of_the_released_checkpoint(model):
    names = model.state_dict().keys()
    assert "v_head.weight" in names
    assert {name.split(".")[0] for name in names} == {"transformer", "v_head"}


def test_damaged_checkpoint_names_its_weights(model, tmp_path):
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    weights["lm_head.weight"] = weights.pop("v_head.weight")
    weights["transformer.norm.weight"] = torch.ones(7)
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"v_head\.weight") as error:
        RewardModel.from_pretrained(tmp_path)
    assert "lm_head.weight" in str(error.value)
    assert "transformer.norm.weight" in str(error.value)


def conversation(question: str, answer: str) -> list[dict]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def test_score_keeps_the_order_and_ignores_the_batching(model, tokenizer):
    talks = [conversation("What is it?", "It is " + "so " * n + ".") for n in (7, 0, 30, 2, 11, 1)]
    expected = torch.cat(
        [
            model(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long)).detach()
            for ids in (encode(tokenizer, talk, False) for talk in talks)
        ]
    )
    assert len(expected.unique()) == len(talks)
    for batch_size in (1, 4, 64):
        scores = score(model, tokenizer, talks, batch_size=batch_size)
        assert (scores.dtype, scores.device.type) == (torch.float32, "cpu")
        torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(reward_function(model, tokenizer, batch_size=3)(talks), expected)
    assert score(model, tokenizer, []).shape == (0,)


def test_long_conversations_keep_their_end_and_are_counted(model, tokenizer):
    talks = [conversation("Why? " * 40, "So."), conversation("Why?", "So.")]
    whole = [encode(tokenizer, talk, False) for talk in talks]
    cut, truncated = encode_conversations(tokenizer, talks, max_length=60)
    assert len(whole[0]) > 60 > len(whole[1])
    assert truncated.tolist() == [True, False]
    assert cut == [whole[0][-60:], whole[1]]
    torch.testing.assert_close(
        score(model, tokenizer, talks, max_length=60), score_sequences(model, cut)
    )


def test_scoring_leaves_the_mode_and_no_graph(model, tokenizer):
    model.train()
    scores = score(model, tokenizer, [conversation("Why?", "So.")])
    assert model.training
    assert not scores.requires_grad
    model.eval()


def test_scores_stay_float32_under_autocast(model):
    batch = padded(sequences([6, 12]), "right")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = model(*batch)
    assert scores.dtype == torch.float32
    assert not torch.equal(scores, scores.bfloat16().float())  # not rounded on the way
