"""The reward model: where the score is read, what is kept of a policy, files, scoring."""

import copy
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_rewards import llama_config, llama_tokenizer
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    MistralForSequenceClassification,
)

from starling_nb.data.chat import encode, train_tokenizer
from starling_nb.policy.objectives import APA
from starling_nb.policy.rl import tune_policy
from starling_nb.reward.model import (
    RewardModel,
    encode_conversations,
    last_attended,
    reward_function,
    score,
    score_sequences,
    score_sharing,
    score_with_truncation,
    share_prefixes,
    shuffled,
)
from starling_nb.reward.packing import pack_list, score_lists
from starling_nb.reward.templates import encode_conversation
from starling_nb.training import MAX_TOKENS

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


# --- prompts computed once ---


def lists_of_answers(prompts, answers, seed=0):
    """Sequences that begin with their group's prompt, and their groups, in mixed order."""
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randint, 5, VOCABULARY, generator=generator)
    starts = [draw((length,)).tolist() for length in prompts]
    pairs = [
        (starts[group] + draw((size,)).tolist(), group)
        for group in range(len(prompts))
        for size in answers
    ]
    order = torch.randperm(len(pairs), generator=generator).tolist()
    return [pairs[i][0] for i in order], [pairs[i][1] for i in order]


@pytest.mark.parametrize("policy", [mistral, gpt2])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_sharing_a_prompt_changes_no_score(policy, batch_size):
    model = RewardModel.from_policy(policy()).eval()
    sequences, groups = lists_of_answers((40, 1, 25), (3, 11, 1, 3))
    alone = score_sequences(model, sequences)
    assert len(alone.unique()) == len(alone)
    shared = score_sharing(model, sequences, groups, batch_size)
    torch.testing.assert_close(shared, alone, rtol=1e-5, atol=1e-5)


def test_sharing_in_double_precision():
    model = RewardModel.from_policy(mistral()).eval().double()
    sequences, groups = lists_of_answers((40, 30), (3, 11, 1, 3), seed=1)
    shared = score_sharing(model, sequences, groups)
    torch.testing.assert_close(shared, score_sequences(model, sequences), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"sliding_window": 16},
        {"layer_types": ["full_attention", "linear_attention", "full_attention"]},
    ],
)
def test_nothing_is_shared_where_the_scores_would_differ(changes):
    policy = mistral()
    for name, value in changes.items():
        setattr(policy.config, name, value)
    model = RewardModel.from_policy(policy).eval()
    sequences, groups = lists_of_answers((40,), (3, 3, 3, 3))
    shared = score_sharing(model, sequences, groups)
    assert torch.equal(shared, score_sequences(model, sequences))
    assert tokens_seen(model, lambda: score_sharing(model, sequences, groups)) == [4 * 43]
    model.config.sliding_window, model.config.layer_types = 43, None
    assert tokens_seen(model, lambda: score_sharing(model, sequences, groups)) == [40 + 12]


def tokens_seen(model, call) -> list[int]:
    """The numbers of tokens, padding included, of the trunk's forward passes during `call`."""
    seen = []
    hook = model.transformer.register_forward_pre_hook(
        lambda _, __, inputs: seen.append(inputs["input_ids"].numel()), with_kwargs=True
    )
    call()
    hook.remove()
    return seen


def test_a_shared_prompt_is_computed_once(model):
    """One list: P + sum(A) tokens instead of K P + sum(A)."""
    sequences, groups = lists_of_answers((40,), (3, 3, 3, 3))
    assert tokens_seen(model, lambda: score_sharing(model, sequences, groups)) == [40 + 12]
    assert tokens_seen(model, lambda: score_sequences(model, sequences)) == [4 * 43]
    assert tokens_seen(model, lambda: score_sharing(model, sequences, range(4))) == [4 * 43]


def test_a_row_has_a_batchs_tokens_at_most():
    sizes = (MAX_TOKENS // 2, MAX_TOKENS // 2 - 4, 1, 3)
    rows = share_prefixes([[7, 7, *[i] * size] for i, size in enumerate(sizes)], [0] * 4)
    assert rows == [(2, [0, 1]), (2, [2, 3])]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_another_attention_shares_nothing(attention, tmp_path):
    RewardModel.from_policy(mistral()).save_pretrained(tmp_path)
    model = RewardModel.from_pretrained(tmp_path, attn_implementation=attention).eval()
    sequences, groups = lists_of_answers((40,), (3, 3, 3, 3))
    alone, shared = [4 * 43], [40 + 12]
    expected = shared if attention == "sdpa" else alone
    assert tokens_seen(model, lambda: score_sharing(model, sequences, groups)) == expected


def test_packed_rows_are_refused_by_another_attention(tmp_path):
    RewardModel.from_policy(mistral()).save_pretrained(tmp_path)
    model = RewardModel.from_pretrained(tmp_path, attn_implementation="eager")
    with pytest.raises(ValueError, match="need attention by sdpa, the trunk's is 'eager'"):
        score_lists(model, [pack_list([5, 6], [[7], [8, 9]])])


@given(st.lists(st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=9), st.integers(0, 2))))
def test_every_sequence_is_in_one_row_with_others_of_its_beginning(pairs):
    sequences, groups = [ids for ids, _ in pairs], [group for _, group in pairs]
    rows = share_prefixes(sequences, groups)
    assert sorted(i for _, indices in rows for i in indices) == list(range(len(pairs)))
    for shared, indices in rows:
        assert len({groups[i] for i in indices}) == 1
        assert len({tuple(sequences[i][:shared]) for i in indices}) == 1
        assert len(indices) == 1 or shared
        assert all(len(sequences[i]) > shared for i in indices)


def test_score_shares_the_messages_before_the_answers(model, tokenizer):
    asked = "Why is it so, and not in another way? "
    talks = [conversation(asked, f"It is {i}.") for i in range(4)]
    talks = [talks[0], conversation("What?", "So."), *talks[1:], talks[0]]
    together, truncated = score_with_truncation(model, tokenizer, talks)
    apart = score(model, tokenizer, talks, share_prompts=False)
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)
    assert not truncated.any()
    saved = sum(tokens_seen(model, lambda: score(model, tokenizer, talks, share_prompts=False)))
    assert sum(tokens_seen(model, lambda: score(model, tokenizer, talks))) < saved / 2
    rewards = reward_function(model, tokenizer)
    assert sum(tokens_seen(model, lambda: rewards(talks))) == saved


def test_cut_conversations_are_counted_and_not_shared(model, tokenizer):
    talks = [conversation("Why? " * 40, "So" * n) for n in (1, 2, 3)] + [conversation("A?", "B.")]
    scores, truncated = score_with_truncation(model, tokenizer, talks, max_length=60)
    assert truncated.tolist() == [True, True, True, False]
    cut = [encode(tokenizer, talk, False)[-60:] for talk in talks]
    torch.testing.assert_close(scores, score_sequences(model, cut), rtol=1e-5, atol=1e-5)


def test_one_cut_conversation_does_not_keep_the_others_apart(model, tokenizer):
    talks = [conversation("Why? " * 9, "So. " * n) for n in (1, 2, 60)]
    lengths = [len(encode(tokenizer, talk, False)) for talk in talks]
    limit = lengths[2] - 1
    seen = tokens_seen(model, lambda: score(model, tokenizer, talks, max_length=limit))
    assert sorted(seen)[-1] == limit
    assert sum(seen) < limit + lengths[1] + lengths[0] - 40


# --- what a checkpoint carries ---


@pytest.mark.parametrize("template", ["llama2_starling", "chatml_yi"])
def test_scores_are_of_the_checkpoints_own_template_and_length(template):
    torch.manual_seed(0)
    config = llama_config(vocab_size=32010, reward_template=template, reward_max_length=12)
    model = RewardModel(config).eval()
    tokenizer = llama_tokenizer()
    talks = [conversation("Why is it so?", "It is so."), conversation("Why?", "So.")]
    scores, truncated = score_with_truncation(model, tokenizer, talks)
    ids = [encode_conversation(tokenizer, talk, template, 12)[0] for talk in talks]
    torch.testing.assert_close(scores, score_sequences(model, ids))
    assert truncated[0]
    assert max(map(len, ids)) == 12


def test_a_policy_and_a_reward_model_with_other_words_work_together(tokenizer):
    """Rewards take conversations: 280 byte-level tokens there, 32 000 pieces and [INST] here."""
    torch.manual_seed(0)
    config = llama_config(vocab_size=32010, reward_template="llama2_starling")
    model = RewardModel(config).eval()
    seen = []

    def reward_fn(talks):
        seen.extend(talks)
        return reward_function(model, llama_tokenizer())(talks)

    tune_policy(
        mistral(),
        reward_fn,
        [[{"role": "user", "content": "What is it?"}]] * 8,
        tokenizer=tokenizer,
        objective=APA(0.3),
        iterations=1,
        batch_size=8,
        minibatch_size=8,
        epochs=1,
        max_new_tokens=6,
    )
    assert len(seen) == 8
    rewards = reward_function(model, llama_tokenizer())(seen)
    assert len(rewards.unique()) == len({talk[-1]["content"].strip() for talk in seen}) > 1


def test_a_shuffled_reward_gives_the_same_numbers_to_other_answers():
    def position(conversations):
        return torch.tensor([float(c[-1]["content"]) for c in conversations])

    batch = [[{"role": "assistant", "content": str(i)}] for i in range(64)]
    dealt = [shuffled(position, seed)(batch) for seed in (0, 0, 1)]
    assert torch.equal(dealt[0].sort().values, position(batch))
    assert torch.equal(dealt[0], dealt[1])
    assert not torch.equal(dealt[0], dealt[2])
    assert (dealt[0] == position(batch)).sum() < 8  # 1 is expected; 8 or more once in 100,000
    twice = shuffled(position, 0)
    assert not torch.equal(twice(batch), twice(batch))  # each batch is dealt anew
