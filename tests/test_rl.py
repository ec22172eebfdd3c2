"""The policy-tuning loop: what it hands on, what it leaves alone, and that it learns."""

import copy
import json

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from starling_nb.data.chat import train_tokenizer
from starling_nb.data.world import make_world
from starling_nb.device import Device
from starling_nb.policy.base import load_policy
from starling_nb.policy.objectives import apa_loss
from starling_nb.policy.rl import RLConfig, build_apa, save_tuned, tune_policy
from starling_nb.reward.model import RewardModel
from starling_nb.store import Context, read_json

PROMPTS = [[{"role": "user", "content": text}] for text in ("Hello.", "What is 2 + 2?", "Why?")]
SMALL = {"iterations": 2, "batch_size": 8, "minibatch_size": 4, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["What is the capital of France? It is Paris."] * 3, 300)


@pytest.fixture
def policy(tokenizer):
    """A random policy that ends three of four answers within six tokens."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.1,
        sliding_window=None,
        tie_word_embeddings=False,
    )
    model = MistralForCausalLM(config).eval()
    with torch.no_grad():  # final states share a direction, on which the end of turn gains
        model.model.embed_tokens.weight[:, 0] += 1.0
        model.lm_head.weight[tokenizer.eos_token_id, 0] += 1.5
    return model


def length_reward(conversations):
    return torch.tensor([float(len(c[-1]["content"])) for c in conversations])


def never_ending(policy, tokenizer):
    """Make the end of turn impossible."""
    with torch.no_grad():
        policy.lm_head.weight[tokenizer.eos_token_id] = 0
        policy.lm_head.weight[tokenizer.eos_token_id, 0] = -50


def weights(policy):
    return {name: value.clone() for name, value in policy.state_dict().items()}


def same(policy, before):
    return all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())


@pytest.mark.parametrize("objective", ["ppo", "apa"])
def test_learns_what_is_rewarded(policy, tokenizer, objective):
    """Reward 1 for an answer that begins with a capital letter; the seed is fixed."""

    def capital_first(conversations):
        return torch.tensor([float(c[-1]["content"][:1].isupper()) for c in conversations])

    _, history = tune_policy(
        policy,
        capital_first,
        PROMPTS,
        tokenizer=tokenizer,
        objective=objective,
        iterations=14,
        batch_size=48,
        minibatch_size=24,
        lr=1e-2,
        kl_coef=0.0,
        max_new_tokens=3,
    )
    rewards = [record["reward"] for record in history]
    assert max(rewards[:2]) < 0.35
    assert min(rewards[-3:]) > 0.7
    assert history[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert history[-1]["kl"] > 0.3


def test_the_seed_fixes_history_and_weights(policy, tokenizer):
    outcomes = []
    for seed in (3, 3, 4):
        copied = copy.deepcopy(policy)
        torch.manual_seed(seed + 17 * len(outcomes))  # the global generator must not matter
        tuned, history = tune_policy(
            copied, length_reward, PROMPTS, tokenizer=tokenizer, seed=seed, **SMALL
        )
        assert tuned is copied
        outcomes.append((weights(tuned), json.dumps(history)))
    assert outcomes[0][1] == outcomes[1][1] != outcomes[2][1]
    assert all(torch.equal(outcomes[0][0][k], outcomes[1][0][k]) for k in outcomes[0][0])


def test_first_minibatch_is_on_policy(policy, tokenizer):
    """One update: its ratio is that of re-forwarded to sampled log-probabilities."""
    _, history = tune_policy(
        policy,
        length_reward,
        PROMPTS,
        tokenizer=tokenizer,
        objective="ppo",
        iterations=1,
        epochs=1,
        batch_size=16,
        minibatch_size=16,
        max_new_tokens=6,
    )
    assert history[0]["ratio"] == pytest.approx(1, abs=1e-4)
    assert history[0]["clipfrac"] == 0
    assert history[0]["kl"] == pytest.approx(0, abs=1e-4)


def test_an_objective_gets_normalised_scores_as_advantages(policy, tokenizer):
    """At the start V is 0 and the KL is 0: every action's advantage is its answer's score."""
    seen, answered = [], []

    def reward_fn(conversations):
        answered.extend(conversations)
        return 100.0 + 5 * length_reward(conversations)

    def objective(logprobs, old, reference, advantages, mask):
        seen.append((logprobs, old, reference, advantages, mask))
        return logprobs.sum() * 0, {}

    before = weights(policy)
    _, history = tune_policy(
        policy,
        reward_fn,
        PROMPTS,
        tokenizer=tokenizer,
        objective=objective,
        iterations=1,
        epochs=1,
        batch_size=16,
        minibatch_size=16,
        max_new_tokens=6,
    )
    logprobs, old, reference, advantages, mask = seen[0]
    torch.testing.assert_close(logprobs.detach(), old, rtol=0, atol=1e-4)
    torch.testing.assert_close(reference, old, rtol=0, atol=1e-4)
    lengths = length_reward(answered)
    unfinished = torch.tensor([not c[-1]["finished"] for c in answered])
    assert 0 < unfinished.sum() < 16
    expected = (lengths - lengths.mean()) / lengths.std(correction=0) - unfinished.float()
    assert sorted(advantages[:, 0].tolist()) == pytest.approx(sorted(expected.tolist()), abs=1e-4)
    spread = (advantages - advantages[:, :1])[mask]
    torch.testing.assert_close(spread, torch.zeros_like(spread), rtol=0, atol=1e-4)
    assert same(policy, before)
    record = history[0]
    assert record["reward"] == pytest.approx(100 + 5 * lengths.mean().item(), rel=1e-5)
    assert record["finished"] == pytest.approx(1 - unfinished.float().mean().item())
    assert record["length"] == pytest.approx(mask.sum().item() / 16)
    assert record["entropy"] == pytest.approx(-old[mask].mean().item(), rel=1e-5)


def test_reference_stays_and_anchors(policy, tokenizer):
    """An anchor other than the start: KL is measured to it; without reward APA returns to it."""
    reference = copy.deepcopy(policy)
    with torch.no_grad():
        policy.lm_head.weight[20:40, 0] += 2.0
    before = weights(reference)
    _, history = tune_policy(
        policy,
        lambda conversations: torch.zeros(len(conversations)),
        PROMPTS,
        tokenizer=tokenizer,
        reference=reference,
        lam=1e6,
        lr=3e-3,
        iterations=12,
        batch_size=48,
        minibatch_size=48,
        max_new_tokens=4,
    )
    assert same(reference, before)
    assert history[0]["kl"] > 0.3
    assert history[-1]["kl"] < 0.2 * history[0]["kl"]


def test_named_apa_is_the_paper_s_loss_against_the_reference(policy, tokenizer):
    def own(logprobs, old, reference, advantages, mask):
        return apa_loss(logprobs, reference, advantages, mask, lam=0.7)

    outcomes = []
    for options in ({"lam": 0.7}, {"objective": own, "kl_coef": 0.0}):
        copied = copy.deepcopy(policy)
        tune_policy(copied, length_reward, PROMPTS, tokenizer=tokenizer, **SMALL | options)
        outcomes.append(weights(copied))
    assert all(torch.equal(outcomes[0][name], outcomes[1][name]) for name in outcomes[0])


def test_scores_keep_the_scale_of_the_first_batch(policy, tokenizer):
    """A reward that rises by 100 shows as advantages of 100 standard deviations of the first."""
    firsts, lengths = [], []

    def rising(conversations):
        lengths.append(length_reward(conversations))
        return lengths[-1] + 100 * (len(lengths) - 1)

    def objective(logprobs, old, reference, advantages, mask):
        firsts.append(advantages[:, 0].mean().item())
        return logprobs.sum() * 0, {}

    options = SMALL | {"batch_size": 16, "minibatch_size": 16, "epochs": 1}
    tune_policy(policy, rising, PROMPTS, tokenizer=tokenizer, objective=objective, **options)
    assert abs(firsts[0]) < 1
    assert firsts[1] == pytest.approx(100 / lengths[0].std(correction=0).item(), abs=2)


def test_critic_learns_and_does_not_shape_the_policy(policy, tokenizer):
    """The reward is 4 deviations higher after the first batch; the policy stands still."""
    calls, advantage = [], []

    def raised(conversations):
        calls.append(len(conversations))
        return (torch.arange(16) % 2 + 2.0 * (len(calls) > 1)).float()

    def objective(logprobs, old, reference, advantages, mask):
        advantage.append(advantages[mask].mean().item())
        return logprobs.sum() * 0, {}

    never_ending(policy, tokenizer)
    before = weights(policy)
    options = SMALL | {"iterations": 25, "batch_size": 16, "minibatch_size": 16, "lr": 1e-2}
    tune_policy(policy, raised, PROMPTS, tokenizer=tokenizer, objective=objective, **options)
    assert advantage[2] == pytest.approx(4 - 1, abs=0.4)  # unfinished answers lose 1
    assert abs(advantage[-1]) < 0.4
    assert same(policy, before)


def test_learning_rate_rises_over_five_iterations(policy, tokenizer):
    """Adam's first step moves the weights with the largest gradients by the learning rate."""
    before = weights(policy)
    options = SMALL | {"iterations": 1, "epochs": 1, "minibatch_size": 8}
    tune_policy(policy, length_reward, PROMPTS, tokenizer=tokenizer, lr=1e-2, **options)
    largest = max((value - before[n]).abs().max() for n, value in policy.state_dict().items())
    assert largest.item() == pytest.approx(1e-2 / 5, rel=0.01)


def test_constant_reward_moves_nothing_under_ppo_without_kl(policy, tokenizer):
    """No answer can end: every whitened advantage is 0, and so is every update."""
    never_ending(policy, tokenizer)
    before = weights(policy)
    _, history = tune_policy(
        policy,
        lambda conversations: torch.full((len(conversations),), 7.0),
        PROMPTS,
        tokenizer=tokenizer,
        objective="ppo",
        kl_coef=0.0,
        **SMALL | {"iterations": 1, "epochs": 1, "minibatch_size": 8},
    )
    assert history[0]["finished"] == 0
    assert same(policy, before)


def test_half_precision_ends_before_the_losses(policy, tokenizer):
    dtypes = set()

    def objective(logprobs, old, reference, advantages, mask):
        dtypes.update(x.dtype for x in (logprobs, old, reference, advantages))
        return apa_loss(logprobs, reference, advantages, mask, lam=0.3)

    device = Device(torch.device("cpu"), torch.bfloat16, "sdpa", 1, {})
    tune_policy(
        policy,
        length_reward,
        PROMPTS,
        tokenizer=tokenizer,
        objective=objective,
        device=device,
        **SMALL,
    )
    assert dtypes == {torch.float32}
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in policy.parameters())


def test_history_is_reported_as_it_grows(policy, tokenizer):
    reported = []
    _, history = tune_policy(
        policy,
        length_reward,
        PROMPTS,
        tokenizer=tokenizer,
        on_iteration=reported.append,
        **SMALL,
    )
    assert reported == history
    assert [record["iteration"] for record in history] == [0, 1]
    assert all(isinstance(v, int | float) for record in history for v in record.values())


def test_bad_input_is_refused(policy, tokenizer):
    def tune(reward_fn=length_reward, prompts=PROMPTS, **options):
        return tune_policy(policy, reward_fn, prompts, tokenizer=tokenizer, **SMALL | options)

    before = weights(policy)
    with pytest.raises(ValueError, match="objective: expected apa or ppo or a function"):
        tune(objective="pppo")
    with pytest.raises(ValueError, match="prompts: expected at least one"):
        tune(prompts=[])
    other = MistralForCausalLM(MistralConfig(**{**policy.config.to_dict(), "vocab_size": 31}))
    with pytest.raises(ValueError, match="reference: expected the policy's vocabulary of"):
        tune(reference=other)
    with pytest.raises(ValueError, match=r"expected scores of shape \(8,\)"):
        tune(lambda conversations: torch.zeros(3))
    with pytest.raises(ValueError, match=r"found nan for conversation 2 of the batch \(1 of 8"):
        tune(lambda conversations: torch.tensor([0.0, 1, float("nan"), 1, 1, 1, 1, 1]))
    assert same(policy, before)


def test_stage_tunes_a_copy_and_reloads_equal(tokenizer, policy, tmp_path):
    scorer = RewardModel.from_policy(policy, 0)
    ctx = Context(0, Device(torch.device("cpu"), torch.float32, "sdpa", 1, {}))
    config = RLConfig(iterations=1, batch_size=4, minibatch_size=2, max_new_tokens=4)
    built = build_apa(config, ctx, (policy, tokenizer), (scorer, tokenizer), make_world(0))
    save_tuned(built, tmp_path)
    reloaded, _ = load_policy(tmp_path)
    assert same(built[0], reloaded.state_dict())
    assert len(read_json(tmp_path / "history.json")) == 1
