"""The policy-tuning loop: what it hands on, what it leaves alone, and that it learns."""

import copy
import json
from functools import partial
from itertools import pairwise

import pytest
import torch
from peft import LoraConfig
from transformers import MistralConfig, MistralForCausalLM

from starling_nb.data.chat import train_tokenizer
from starling_nb.data.world import make_world
from starling_nb.device import Device
from starling_nb.policy.base import load_policy
from starling_nb.policy.objectives import APA, AWR, P3O, PPO, apa_loss, ppo_loss
from starling_nb.policy.rl import APAConfig, Stopped, build_apa, save_tuned, tune_policy
from starling_nb.reward.model import RewardModel
from starling_nb.store import Context, read_json

PROMPTS = [[{"role": "user", "content": text}] for text in ("Hello.", "What is 2 + 2?", "Why?")]
SMALL = {
    "objective": APA(0.3),
    "iterations": 2,
    "batch_size": 8,
    "minibatch_size": 4,
    "max_new_tokens": 6,
}


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


@pytest.mark.parametrize(
    "options",
    [
        {"objective": PPO(), "whitening": True},
        {"objective": APA(0.3)},
        {"objective": APA(0.3, anchor="old")},
        {"objective": AWR(1.0)},
        {"objective": P3O(0.0), "samples": 2},
    ],
    ids=["ppo", "apa", "apa-old", "awr", "p3o"],
)
def test_learns_what_is_rewarded(policy, tokenizer, options):
    """Reward 1 for an answer that begins with a capital letter; the seed is fixed."""

    def capital_first(conversations):
        return torch.tensor([float(c[-1]["content"][:1].isupper()) for c in conversations])

    _, history = tune_policy(
        policy,
        capital_first,
        PROMPTS,
        tokenizer=tokenizer,
        iterations=14,
        batch_size=48,
        minibatch_size=24,
        lr=1e-2,
        max_new_tokens=3,
        **options,
    )
    rewards = [record["reward"] for record in history]
    assert max(rewards[:2]) < 0.35
    assert sum(rewards[-3:]) / 3 > 0.7
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
        objective=PPO(),
        whitening=True,
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

    def objective(logprobs, sampled):
        seen.append((logprobs, sampled))
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
    logprobs, sampled = seen[0]
    old, reference = sampled.old_logprobs, sampled.reference_logprobs
    advantages, mask = sampled.advantages, sampled.mask
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
        objective=APA(1e6),
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
    def own(logprobs, s):
        return apa_loss(logprobs, s.reference_logprobs, s.advantages, s.mask, lam=0.7)

    outcomes = []
    for options in ({"objective": APA(0.7)}, {"objective": own}):
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

    def objective(logprobs, sampled):
        firsts.append(sampled.advantages[:, 0].mean().item())
        return logprobs.sum() * 0, {}

    options = {"batch_size": 16, "minibatch_size": 16, "epochs": 1, "objective": objective}
    tune_policy(policy, rising, PROMPTS, tokenizer=tokenizer, **SMALL | options)
    assert abs(firsts[0]) < 1
    assert firsts[1] == pytest.approx(100 / lengths[0].std(correction=0).item(), abs=2)


def test_critic_learns_and_does_not_shape_the_policy(policy, tokenizer):
    """The reward is 4 deviations higher after the first batch; the policy stands still."""
    calls, advantage = [], []

    def raised(conversations):
        calls.append(len(conversations))
        return (torch.arange(16) % 2 + 2.0 * (len(calls) > 1)).float()

    def objective(logprobs, sampled):
        advantage.append(sampled.advantages[sampled.mask].mean().item())
        return logprobs.sum() * 0, {}

    never_ending(policy, tokenizer)
    before = weights(policy)
    options = {"iterations": 25, "batch_size": 16, "minibatch_size": 16, "lr": 1e-2}
    options["objective"] = objective
    tune_policy(policy, raised, PROMPTS, tokenizer=tokenizer, **SMALL | options)
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
        whitening=True,
        **SMALL | {"objective": PPO(), "iterations": 1, "epochs": 1, "minibatch_size": 8},
    )
    assert history[0]["finished"] == 0
    assert same(policy, before)


def test_half_precision_ends_before_the_losses(policy, tokenizer):
    dtypes = set()

    def objective(logprobs, s):
        floats = (logprobs, s.old_logprobs, s.reference_logprobs, s.advantages, s.scores)
        dtypes.update(x.dtype for x in floats)
        return APA(0.3)(logprobs, s)

    device = Device(torch.device("cpu"), torch.bfloat16, "sdpa", 1, {})
    tune_policy(
        policy,
        length_reward,
        PROMPTS,
        tokenizer=tokenizer,
        device=device,
        **SMALL | {"objective": objective},
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


def test_the_last_layers_alone_are_tuned_as_if_the_rest_were_frozen(policy, tokenizer):
    """The shared trunk is a shortcut: the same run with frozen weights and a whole reference."""
    frozen, before = copy.deepcopy(policy), weights(policy)
    for name, parameter in frozen.named_parameters():
        parameter.requires_grad_(".layers.1." in name or ".norm." in name)
    _, slow = tune_policy(
        frozen, length_reward, PROMPTS, tokenizer=tokenizer, kl_coef=0.1, **SMALL | {"lr": 1e-2}
    )
    _, fast = tune_policy(
        policy,
        length_reward,
        PROMPTS,
        tokenizer=tokenizer,
        kl_coef=0.1,
        last_layers=1,
        **SMALL | {"lr": 1e-2},
    )
    moved = {n for n, v in policy.state_dict().items() if not torch.equal(v, before[n])}
    assert moved == {n for n in before if ".layers.1." in n or ".norm." in n}
    for name, value in frozen.state_dict().items():
        torch.testing.assert_close(policy.state_dict()[name], value, rtol=0, atol=1e-4)
    for a, b in zip(slow, fast, strict=True):
        assert a == pytest.approx(b, abs=1e-3, nan_ok=True)
    assert all(p.requires_grad for p in policy.parameters())


def test_adapters_are_merged_and_the_reference_is_the_policy_without_them(policy, tokenizer):
    """The policy it starts from is the reference, though it was never copied."""
    start, kind = copy.deepcopy(policy), type(policy)
    seen = []

    def objective(logprobs, sampled):
        seen.append(sampled)
        return APA(0.3)(logprobs, sampled)

    lora = LoraConfig(lora_alpha=4, **LORA)
    options = SMALL | {"lr": 3e-2, "iterations": 3, "objective": objective}
    tuned, history = tune_policy(
        policy, length_reward, PROMPTS, tokenizer=tokenizer, lora=lora, **options
    )
    assert tuned is policy
    assert type(policy) is kind
    assert policy.state_dict().keys() == start.state_dict().keys()
    assert history[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert abs(history[2]["kl"]) > 1e-3
    for name, value in policy.state_dict().items():
        change = value - start.state_dict()[name]
        if "q_proj" in name or "v_proj" in name:
            assert torch.linalg.matrix_rank(change, atol=1e-5, rtol=0) in (1, 2)
        else:
            assert not change.any(), name
    assert all(p.requires_grad for p in policy.parameters())


def test_a_stopped_run_goes_on_to_the_same_weights_to_the_bit(policy, tokenizer, tmp_path):
    options = SMALL | {"iterations": 7, "tokenizer": tokenizer, "kl_coef": 0.1, "kl_target": 0.2}
    whole = copy.deepcopy(policy)
    _, expected = tune_policy(whole, length_reward, PROMPTS, folder=tmp_path / "whole", **options)
    assert list((tmp_path / "whole").iterdir()) == []

    def dies(record):
        if record["iteration"] == 4:
            raise KeyboardInterrupt

    halted = copy.deepcopy(policy)
    with pytest.raises(KeyboardInterrupt):
        tune_policy(
            halted, length_reward, PROMPTS, folder=tmp_path / "run", on_iteration=dies, **options
        )
    resumed, reported = copy.deepcopy(policy), []
    _, history = tune_policy(
        resumed,
        length_reward,
        PROMPTS,
        folder=tmp_path / "run",
        on_iteration=reported.append,
        **options,
    )
    assert [record["iteration"] for record in reported] == [4, 5, 6]
    assert json.dumps(history) == json.dumps(expected)
    assert same(resumed, weights(whole))


def died_in(folder, policy, tokenizer, **options):
    """Start a run of four iterations that dies after the third, when its state has been saved."""

    def dies(record):
        if record["iteration"] == 2:
            raise KeyboardInterrupt

    options = SMALL | {"iterations": 4, "folder": folder, "on_iteration": dies} | options
    with pytest.raises(KeyboardInterrupt):
        tune_policy(policy, length_reward, PROMPTS, tokenizer=tokenizer, **options)


LORA = {"r": 2, "target_modules": ["q_proj", "v_proj"]}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"lr": 1e-3}, "lr 0.001, found 0.0004"),
        ({"batch_size": 16}, "batch_size 16, found 8"),
        ({"whitening": True}, "whitening True, found False"),
        ({"last_layers": 1}, "last_layers 1, found None"),
        ({"lora": LoraConfig(**LORA)}, "lora .*, found None"),
        ({"objective": APA(0.9)}, r"objective APA\(lam=0.9.*, found APA\(lam=0.3"),
        ({"objective": PPO()}, "objective PPO"),
        ({"objective": partial(ppo_loss, clip=0.1)}, "objective partial"),
        ({"prompts": PROMPTS[:2]}, "prompts"),
        ({"device": Device(torch.device("cpu"), torch.bfloat16, "sdpa", 1, {})}, "device"),
    ],
)
def test_the_state_of_another_run_is_refused(policy, tokenizer, tmp_path, change, named):
    died_in(tmp_path, copy.deepcopy(policy), tokenizer)
    before = weights(policy)
    options = SMALL | {"prompts": PROMPTS, "iterations": 4, "tokenizer": tokenizer} | change
    with pytest.raises(ValueError, match=f"state.pt: expected the state of a run with {named}"):
        tune_policy(policy, length_reward, folder=tmp_path, **options)
    assert same(policy, before)
    assert (tmp_path / "state.pt").is_file()


def test_a_half_tuned_policy_does_not_pass_for_the_start_of_the_run(policy, tokenizer, tmp_path):
    """A cell that was interrupted and is run again, without loading the policy anew."""
    died_in(tmp_path, policy, tokenizer)
    options = SMALL | {"iterations": 4, "tokenizer": tokenizer, "folder": tmp_path}
    with pytest.raises(ValueError, match="expected the state of a run with policy"):
        tune_policy(policy, length_reward, PROMPTS, **options)


def test_a_damaged_state_is_named(policy, tokenizer, tmp_path):
    died_in(tmp_path, copy.deepcopy(policy), tokenizer)
    path = tmp_path / "state.pt"
    path.write_bytes(path.read_bytes()[:1000])
    options = SMALL | {"iterations": 4, "tokenizer": tokenizer, "folder": tmp_path}
    with pytest.raises(ValueError, match=r"state.pt: expected the saved state of a run, found a"):
        tune_policy(policy, length_reward, PROMPTS, **options)


@pytest.mark.parametrize("options", [{"lora": LoraConfig(**LORA)}, {"last_layers": 1}])
def test_an_error_leaves_the_policy_in_its_form(policy, tokenizer, tmp_path, options):
    """And a run with adapters can go on: their state is in the folder, not in the policy."""
    before = weights(policy)
    died_in(tmp_path, policy, tokenizer, **options)
    assert weights(policy).keys() == before.keys()
    assert all(p.requires_grad for p in policy.parameters())
    if "lora" in options:
        assert same(policy, before)
        options |= {"iterations": 4, "folder": tmp_path}
        _, history = tune_policy(
            policy, length_reward, PROMPTS, tokenizer=tokenizer, **SMALL | options
        )
        assert [record["iteration"] for record in history] == [0, 1, 2, 3]
        assert not same(policy, before)


def test_at_first_the_critic_may_learn_alone(policy, tokenizer):
    before, moved = weights(policy), []
    _, history = tune_policy(
        policy,
        length_reward,
        PROMPTS,
        tokenizer=tokenizer,
        critic_iterations=3,
        on_iteration=lambda record: moved.append(not same(policy, before)),
        **SMALL | {"iterations": 5},
    )
    assert moved == [False, False, False, True, True]
    assert [record["grad_norm"] > 0 for record in history] == moved
    assert history[2]["value_loss"] != history[0]["value_loss"]


@pytest.mark.parametrize("critic_lr", [0.0, 0.03])
def test_the_critic_learns_at_its_own_rate(policy, tokenizer, critic_lr):
    """The policy stands still (lr 0); a critic that never moves goes on saying 0."""
    _, history = tune_policy(
        policy,
        length_reward,
        PROMPTS,
        tokenizer=tokenizer,
        critic_lr=critic_lr,
        **SMALL | {"lr": 0.0, "iterations": 12, "batch_size": 32, "minibatch_size": 16},
    )
    explained = [record["explained_variance"] for record in history]
    assert explained[0] == pytest.approx(0, abs=0.01)
    assert (sum(explained[-3:]) / 3 > 0.05) == (critic_lr > 0)
    assert history[-1]["kl"] == pytest.approx(0, abs=1e-5)


def test_equal_scores_at_first_leave_the_scale_alone(policy, tokenizer):
    """A reward that is 0 until something is found must not be blown up when it is."""
    seen, calls = [], []

    def rare(conversations):
        calls.append(len(conversations))
        return [float(len(calls) > 1)] * len(conversations)  # a list will do

    def objective(logprobs, sampled):
        seen.append(sampled.scores.max().item())
        return logprobs.sum() * 0, {}

    tune_policy(policy, rare, PROMPTS, tokenizer=tokenizer, **SMALL | {"objective": objective})
    assert max(seen) == 1.0


def test_scores_are_moved_up_by_the_shift(policy, tokenizer):
    """By that many standard deviations: here of lengths, in both runs the same."""
    firsts = {}
    for shift in (0.0, 0.75):

        def objective(logprobs, sampled, shift=shift):
            firsts[shift] = sampled.scores, sampled.advantages
            return logprobs.sum() * 0, {}

        options = {"objective": objective, "iterations": 1, "epochs": 1, "minibatch_size": 8}
        tune_policy(
            policy,
            length_reward,
            PROMPTS,
            tokenizer=tokenizer,
            reward_shift=shift,
            **SMALL | options,
        )
    torch.testing.assert_close(firsts[0.75][0] - firsts[0.0][0], torch.full((8,), 0.75))


def test_the_price_of_kl_follows_its_target(policy, tokenizer):
    """Ziegler's rule by hand: error within ± .2, gain .1."""
    _, history = tune_policy(
        policy,
        length_reward,
        PROMPTS,
        tokenizer=tokenizer,
        kl_coef=0.2,
        kl_target=0.05,
        **SMALL | {"iterations": 6, "lr": 1e-2},
    )
    assert history[0]["kl_coef"] == 0.2
    for now, then in pairwise(history):
        error = max(-0.2, min(0.2, now["kl"] / 0.05 - 1))
        assert then["kl_coef"] == pytest.approx(now["kl_coef"] * (1 + 0.1 * error))
    assert history[-1]["kl_coef"] != 0.2


def test_a_price_on_kl_keeps_the_policy_near(policy, tokenizer):
    kl = {}
    for kl_coef in (0.0, 10.0):
        _, history = tune_policy(
            copy.deepcopy(policy),
            length_reward,
            PROMPTS,
            tokenizer=tokenizer,
            kl_coef=kl_coef,
            whitening=True,
            **SMALL
            | {"objective": PPO(), "iterations": 10, "batch_size": 32, "minibatch_size": 16}
            | {"lr": 1e-2},
        )
        kl[kl_coef] = history[-1]["kl"]
    assert kl[10.0] < 0.5 * kl[0.0]


def test_two_samples_of_a_prompt_stay_together(policy, tokenizer):
    """Rows 2i and 2i + 1 of every minibatch answer one prompt; P3O relies on it."""
    asked, seen = [], []

    def reward_fn(conversations):
        asked.append([conversation[-2]["content"] for conversation in conversations])
        return torch.arange(float(len(conversations)))

    def objective(logprobs, sampled):
        seen.append(sampled.scores)
        return logprobs.sum() * 0, {}

    never_ending(policy, tokenizer)  # so that all lose 1 for being cut
    options = {"iterations": 1, "epochs": 1, "samples": 2, "objective": objective}
    tune_policy(policy, reward_fn, PROMPTS, tokenizer=tokenizer, **SMALL | options)
    assert asked[0][::2] == asked[0][1::2]
    assert len(set(asked[0])) > 1
    spread = torch.arange(8.0).std(correction=0)
    places = ((torch.cat(seen) + 1) * spread + 3.5).round().long().tolist()
    assert sorted(places) == list(range(8)) != places
    assert [b - a for a, b in zip(places[::2], places[1::2], strict=True)] == [1] * 4


def test_a_run_that_has_gone_wrong_stops_with_its_reason(policy, tokenizer):
    def tune(objective=SMALL["objective"], policy=policy, **options):
        options = SMALL | {"objective": objective, "iterations": 12} | options
        return tune_policy(
            copy.deepcopy(policy), length_reward, PROMPTS, tokenizer=tokenizer, **options
        )

    with pytest.raises(Stopped, match=r"iteration 0: expected finite .* policy_loss nan"):
        tune(lambda logprobs, sampled: (logprobs.sum() * float("nan"), {}))
    with pytest.raises(Stopped, match=r"iteration 0: .* grad_norm nan"):  # of a finite loss
        tune(lambda logprobs, sampled: ((logprobs.detach() - logprobs).sum().sqrt(), {}))
    certain = copy.deepcopy(policy)
    with torch.no_grad():
        certain.lm_head.weight *= 1e4
    with pytest.raises(Stopped, match="collapsed to one answer") as stopped:
        tune(policy=certain)
    assert len(stopped.value.history) == 1

    def longer(logprobs, sampled):
        """Make the last action, which is mostly the end of turn, ever less likely."""
        last = sampled.mask.sum(1, keepdim=True) - 1
        return logprobs.gather(1, last).mean(), {}

    with pytest.raises(Stopped, match="no answer has ended for 5 iterations") as stopped:
        tune(longer, iterations=60, lr=3e-2)
    finished = [record["finished"] for record in stopped.value.history]
    assert max(finished) > 0 == max(finished[-5:])


def test_bad_input_is_refused(policy, tokenizer):
    def tune(reward_fn=length_reward, prompts=PROMPTS, **options):
        return tune_policy(policy, reward_fn, prompts, tokenizer=tokenizer, **SMALL | options)

    before = weights(policy)
    with pytest.raises(ValueError, match="prompts: expected at least one"):
        tune(prompts=[])
    other = MistralForCausalLM(MistralConfig(**{**policy.config.to_dict(), "vocab_size": 31}))
    with pytest.raises(ValueError, match="reference: expected the policy's vocabulary of"):
        tune(reference=other)
    with pytest.raises(ValueError, match=r"expected scores of shape \(8,\)"):
        tune(lambda conversations: torch.zeros(3))
    with pytest.raises(ValueError, match=r"found nan for conversation 2 of the batch \(1 of 8"):
        tune(lambda conversations: torch.tensor([0.0, 1, float("nan"), 1, 1, 1, 1, 1]))
    for sizes in ({"batch_size": 9, "samples": 2}, {"minibatch_size": 3, "samples": 2}):
        with pytest.raises(ValueError, match="expected a multiple of 2"):
            tune(**sizes)
    for name in ("iterations", "epochs", "samples"):
        with pytest.raises(ValueError, match=f"{name}: expected at least 1, found 0"):
            tune(**{name: 0})
    with pytest.raises(ValueError, match=r"samples: expected 2 for P3O\(.*, found 1"):
        tune(objective=P3O(0.1))
    with pytest.raises(ValueError, match="kl_target, kl_coef: expected both above 0"):
        tune(kl_target=1.0)
    long = [*PROMPTS, [{"role": "user", "content": "a b " * 200}]]
    with pytest.raises(ValueError, match="prompt 3: expected 1 to 122 tokens"):
        tune(lambda conversations: pytest.fail("nothing is sampled"), prompts=long)
    with pytest.raises(ValueError, match="neither lora nor a reference"):
        tune(last_layers=1, lora=LoraConfig())
    with pytest.raises(ValueError, match="lora: expected bias 'none', found 'all'"):
        tune(lora=LoraConfig(bias="all"))
    assert same(policy, before)


def test_stage_tunes_a_copy_and_reloads_equal(tokenizer, policy, tmp_path):
    scorer = RewardModel.from_policy(policy, 0)
    ctx = Context(0, Device(torch.device("cpu"), torch.float32, "sdpa", 1, {}))
    config = APAConfig(iterations=1, batch_size=4, minibatch_size=2, max_new_tokens=4)
    built = build_apa(config, ctx, (policy, tokenizer), (scorer, tokenizer), make_world(0))
    save_tuned(built, tmp_path)
    reloaded, _ = load_policy(tmp_path)
    assert same(built[0], reloaded.state_dict())
    assert len(read_json(tmp_path / "history.json")) == 1
