"""Sampling against `generate`, against a loop without cache or batch, and against a re-forward."""

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from starling_nb.data.chat import decode_answer, encode, train_tokenizer
from starling_nb.policy import rollout as module
from starling_nb.policy.rollout import (
    action_logprobs,
    decode,
    inverse_cdf,
    left_pad,
    position_ids,
    respond,
    response_logprobs,
    response_states,
    rollout,
    row_seeds,
    uniform_row,
)

EOS, PAD = 3, 4
PROMPTS = [[7, 8, 9], [10], [11, 12, 13, 14, 15, 16], [17, 18], [7, 8, 9], [19] * 9]


@pytest.fixture(scope="module")
def policy():
    """A random float64 policy, peaked enough that its answers differ in length and words."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=24,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        sliding_window=None,
        tie_word_embeddings=True,
    )
    return MistralForCausalLM(config).double().eval()


def sample(policy, prompts=PROMPTS, *, seeds=None, max_new_tokens=20, temperature=1.0):
    seeds = torch.arange(len(prompts)) if seeds is None else seeds
    return rollout(
        policy,
        prompts,
        seeds=seeds,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )


def responses(sampled):
    """The sampled tokens of each row, without padding."""
    pairs = zip(sampled.response_ids, sampled.action_mask, strict=True)
    return [ids[mask].tolist() for ids, mask in pairs]


@torch.no_grad()
def naive_response(policy, prompt, seed, max_new_tokens, temperature):
    """One row, no padding, no cache, the CDF walked token by token."""
    ids, logprobs = list(prompt), []
    for u in uniform_row(seed, max_new_tokens).tolist():
        log_pi = (policy(torch.tensor([ids])).logits[0, -1] / temperature).log_softmax(-1)
        passed, token = 0.0, -1
        while passed <= u:
            token += 1
            passed += log_pi[token].exp().item()
        ids.append(token)
        logprobs.append(log_pi[token].item())
        if token == EOS:
            break
    return ids[len(prompt) :], logprobs


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_equals_a_row_by_row_loop_without_cache(policy, temperature):
    sampled = sample(policy, temperature=temperature)
    lengths = set()
    for i, prompt in enumerate(PROMPTS):
        ids, logprobs = naive_response(policy, prompt, i, 20, temperature)
        assert responses(sampled)[i] == ids
        recorded = sampled.logprobs[i, sampled.action_mask[i]]
        torch.testing.assert_close(recorded, torch.tensor(logprobs).double(), rtol=0, atol=1e-6)
        lengths.add(len(ids))
    assert len(lengths) > 2  # rows left the batch at different steps


def test_greedy_equals_generate(policy):
    sampled = sample(policy, temperature=0)
    ids, mask = left_pad(PROMPTS, PAD, policy.device)
    generated = policy.generate(
        ids,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=20,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    expected = generated[:, ids.shape[1] :]
    assert torch.equal(sampled.response_ids, expected)
    assert len({len(response) for response in responses(sampled)}) > 1


def test_a_row_depends_on_its_own_seed_only(policy):
    together = sample(policy, seeds=torch.arange(100, 106))
    order = [5, 0, 3]
    apart = sample(policy, [PROMPTS[i] for i in order], seeds=torch.tensor([105, 100, 103]))
    assert responses(apart) == [responses(together)[i] for i in order]
    other = sample(policy, seeds=torch.tensor([100, 101, 102, 103, 999, 105]))
    same = [a == b for a, b in zip(responses(other), responses(together), strict=True)]
    assert same == [True, True, True, True, False, True]


def test_mask_ends_with_the_end_of_turn_and_truncation_is_flagged(policy):
    sampled = sample(policy, PROMPTS * 4, max_new_tokens=8)
    assert 0 < sampled.truncated.sum() < 24
    for response, truncated in zip(responses(sampled), sampled.truncated, strict=True):
        assert EOS not in response[:-1]
        assert truncated == (response[-1] != EOS)
        assert not truncated or len(response) == 8
    assert (sampled.response_ids[~sampled.action_mask] == PAD).all()
    assert (sampled.logprobs[~sampled.action_mask] == 0).all()
    one_token = sample(policy, max_new_tokens=1)
    assert one_token.response_ids.shape == (6, 1)
    assert one_token.action_mask.all()


def test_rows_that_finished_leave_the_batch_and_change_nothing(policy, monkeypatch):
    sizes = []
    decoder = policy.get_decoder()
    hook = decoder.register_forward_hook(lambda *call: sizes.append(len(call[-1][0])))
    work, outcomes = {}, {}
    for every in (1, 3, 1000):
        sizes.clear()
        monkeypatch.setattr(module, "DROP_EVERY", every)
        outcomes[every] = sample(policy, PROMPTS * 3)
        work[every] = sum(sizes)
    hook.remove()
    for every in (1, 3):
        assert torch.equal(outcomes[every].response_ids, outcomes[1000].response_ids)
        torch.testing.assert_close(outcomes[every].logprobs, outcomes[1000].logprobs)
    assert work[1] == outcomes[1].action_mask.sum()  # every state computed is used
    assert work[1] < work[3] < work[1000] == 18 * outcomes[1000].response_ids.shape[1]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_recorded_logprobs_equal_a_reforward(policy, dtype, tolerance, temperature):
    model = MistralForCausalLM(policy.config).to(dtype).eval()
    model.load_state_dict(policy.state_dict())
    sampled = sample(model, temperature=temperature)
    inputs = (sampled.prompt_ids, sampled.prompt_mask, sampled.response_ids, sampled.action_mask)
    again = response_logprobs(model, *inputs, temperature=temperature)
    assert again.dtype == sampled.logprobs.dtype == dtype
    torch.testing.assert_close(again, sampled.logprobs, rtol=0, atol=tolerance)


def test_logprobs_and_gradient_equal_those_of_the_full_logits(policy):
    sampled = sample(policy)
    inputs = (sampled.prompt_ids, sampled.prompt_mask, sampled.response_ids, sampled.action_mask)
    rows = []  # that the LM head was applied to
    hook = policy.lm_head.register_forward_hook(lambda *call: rows.append(len(call[1][0])))
    logprobs = response_logprobs(policy, *inputs)
    hook.remove()
    assert rows == [sampled.action_mask.sum()]
    logprobs.sum().backward()
    gradient = policy.model.embed_tokens.weight.grad.clone()
    policy.zero_grad()

    total = 0
    for i, prompt in enumerate(PROMPTS):  # one row at a time, all logits, no padding
        response = responses(sampled)[i]
        log_pi = policy(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
        expected = log_pi[range(len(prompt) - 1, len(prompt + response) - 1), response]
        torch.testing.assert_close(logprobs[i, sampled.action_mask[i]], expected)
        total = total + expected.sum()
    total.backward()
    torch.testing.assert_close(policy.model.embed_tokens.weight.grad, gradient)
    policy.zero_grad()


def test_padding_on_either_side_changes_nothing(policy):
    sampled = sample(policy)
    expected = response_logprobs(
        policy, sampled.prompt_ids, sampled.prompt_mask, sampled.response_ids, sampled.action_mask
    )

    def widened(tensor, fill, left, right):
        return torch.nn.functional.pad(tensor, (left, right), value=fill)

    wider = (
        widened(sampled.prompt_ids, 9, 5, 0),  # 9 stands for garbage: the mask must hide it
        widened(sampled.prompt_mask, False, 5, 0),
        widened(sampled.response_ids, 9, 0, 3),
        widened(sampled.action_mask, False, 0, 3),
    )
    states = response_states(policy, *wider)
    logprobs = action_logprobs(policy, states, wider[2], wider[3])
    torch.testing.assert_close(logprobs[:, :-3], expected, rtol=0, atol=1e-9)
    assert (logprobs[:, -3:] == 0).all()


def test_inverse_cdf_gives_each_token_its_share_exactly():
    probabilities = torch.tensor([0.125, 0.0, 0.5, 0.25, 0.0, 0.125, 0.0])
    uniforms = torch.arange(800, dtype=torch.float64) / 800  # evenly spread: no chance involved
    tokens = inverse_cdf(probabilities.log().expand(800, -1), uniforms)
    assert tokens.bincount(minlength=7).tolist() == [100, 0, 400, 200, 0, 100, 0]
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    zero_at_both_ends = torch.tensor([0.0, 0.3, 0.3, 0.4, 0.0]).log()
    assert inverse_cdf(zero_at_both_ends.expand(2, -1), ends).tolist() == [1, 3]


def test_position_ids_count_from_the_first_token():
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()
    assert position_ids(mask).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 2, 2]]


def test_prompts_that_cannot_be_answered_are_refused(policy):
    with pytest.raises(ValueError, match="expected at least one"):
        sample(policy, [])
    with pytest.raises(ValueError, match="prompt 1: expected 1 to 44 tokens"):
        sample(policy, [[5], []])
    with pytest.raises(ValueError, match=r"prompt 2: .* found 45"):
        sample(policy, [[5], [6], [7] * 45])


@pytest.fixture(scope="module")
def chat_policy(policy):
    tokenizer = train_tokenizer(["What is the capital of France? It is Paris."] * 3, 300)
    config = MistralConfig(**{**policy.config.to_dict(), "vocab_size": len(tokenizer)})
    config.max_position_embeddings = 256
    torch.manual_seed(1)
    model = MistralForCausalLM(config).double().eval()
    with torch.no_grad():  # the end of turn, likelier than it would be
        model.model.embed_tokens.weight[tokenizer.eos_token_id] *= 2
    return model, tokenizer


def test_respond_appends_each_answer_to_its_own_conversation(chat_policy):
    model, tokenizer = chat_policy
    conversations = [
        [{"role": "user", "content": "What is the capital of France?" * (1 + i % 3)}]
        for i in range(9)
    ]
    answered = respond(model, tokenizer, conversations, seed=5, max_new_tokens=12, batch_size=4)
    seeds = row_seeds(9, torch.Generator().manual_seed(5))
    for i, (conversation, extended) in enumerate(zip(conversations, answered, strict=True)):
        assert extended[:-1] == conversation
        ids, _ = naive_response(model, encode(tokenizer, conversation), int(seeds[i]), 12, 1.0)
        assert extended[-1] == {
            "role": "assistant",
            "content": decode_answer(tokenizer, ids),
            "finished": ids[-1] == tokenizer.eos_token_id,
        }
    assert {extended[-1]["finished"] for extended in answered} == {True, False}
    assert conversations[0][-1]["role"] == "user"  # the input is left as it was
    few = respond(model, tokenizer, conversations[:2], seed=5, max_new_tokens=12)
    assert few == answered[:2]


def test_samples_of_a_prompt_share_its_reading(policy):
    """Three samples of each prompt are those of each prompt given three times."""
    seeds = torch.arange(3 * len(PROMPTS)).view(-1, 3)
    lengths = []
    hook = policy.get_decoder().register_forward_pre_hook(
        lambda module, args, call: lengths.append(tuple(call["input_ids"].shape)), with_kwargs=True
    )
    together = sample(policy, seeds=seeds)
    hook.remove()
    assert lengths[0] == together.prompt_ids[::3].shape  # a row for each prompt, not each sample
    repeated = [prompt for prompt in PROMPTS for _ in range(3)]
    apart = sample(policy, repeated, seeds=seeds.flatten())
    assert responses(together) == responses(apart)
    torch.testing.assert_close(together.logprobs, apart.logprobs)
    for name in ("prompt_ids", "prompt_mask", "truncated"):
        assert torch.equal(getattr(together, name), getattr(apart, name))


def test_kept_states_are_those_of_a_second_reading(policy):
    prompts, seeds = [prompt for prompt in PROMPTS if len(prompt) > 1], torch.arange(8).view(-1, 2)
    prompts = prompts[: len(seeds)]
    options = {"seeds": seeds, "max_new_tokens": 20, "eos_token_id": EOS, "pad_token_id": PAD}
    sampled = rollout(policy, prompts, keep_states=True, **options)
    inputs = (sampled.prompt_ids, sampled.prompt_mask, sampled.response_ids, sampled.action_mask)
    states = response_states(policy, *inputs) * sampled.action_mask[..., None]
    torch.testing.assert_close(sampled.states, states)
    assert rollout(policy, prompts, **options).states is None


def ragged(rows=40, width=30):
    """Ids and a mask with padding of any width on both sides, and features, of 40 rows."""
    generator = torch.Generator().manual_seed(5)
    ends = torch.randint(1, width + 1, (rows, 1), generator=generator)
    starts = (torch.rand(rows, 1, generator=generator) * ends).long()
    ids = torch.randint(5, 24, (rows, width), generator=generator)
    columns = torch.arange(width)
    mask = (columns >= starts) & (columns < ends)
    features = torch.randn(rows, width, 32, generator=generator, dtype=torch.float64)
    return ids, mask, features


@pytest.mark.parametrize("with_features", [False, True])
def test_rows_computed_by_length_are_those_of_one_call(policy, with_features):
    """States and the gradient of a sum of them; 40 rows are three batches, one not full."""
    ids, mask, features = ragged()
    read = {"inputs_embeds": features} if with_features else {"input_ids": ids}
    decoder, weight = policy.get_decoder(), policy.model.layers[0].mlp.up_proj.weight
    naive = decoder(
        **read, attention_mask=mask, position_ids=position_ids(mask), use_cache=False
    ).last_hidden_state
    fast = decode(decoder, ids, mask, features if with_features else None)
    torch.testing.assert_close(fast, naive * mask[..., None])
    slopes = torch.linspace(-1, 1, fast.numel(), dtype=torch.float64).view_as(fast)
    gradients = [
        torch.autograd.grad((states * mask[..., None] * slopes).sum(), weight)[0]
        for states in (naive, fast)
    ]
    torch.testing.assert_close(gradients[1], gradients[0])


def test_short_rows_do_not_pay_for_long_ones(policy):
    computed = []
    hook = policy.get_decoder().register_forward_pre_hook(
        lambda module, args, call: computed.append(call["input_ids"].numel()), with_kwargs=True
    )
    ids, mask, _ = ragged()
    decode(policy.get_decoder(), ids, mask)
    hook.remove()
    assert len(computed) == 3
    assert sum(computed) < 0.6 * ids.numel()
