"""DPO and its K-wise form: the losses, log-probabilities of packed lists, training, bad input."""

import copy
import math
from functools import partial
from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_lists import AWKWARD, DOUBLE, STEPS, colour_tokenizer, mistral, ragged, ranked_row, tensor
from transformers import (
    BloomConfig,
    BloomModel,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
)

from starling_nb.device import Device
from starling_nb.laser.freeze import unfreeze_last
from starling_nb.policy import dpo
from starling_nb.policy.dpo import (
    attending_by_sequence,
    dpo_loss,
    ipo_loss,
    kwise_dpo_loss,
    list_logprobs,
    list_metrics,
    score_packed,
    train_dpo,
)
from starling_nb.reward.attention import packable
from starling_nb.reward.kwise import BREAKINGS
from starling_nb.reward.packing import collate, encode_rows

LOSSES = {
    "kwise": kwise_dpo_loss,
    "dpo": dpo_loss,
    "cdpo": partial(dpo_loss, smoothing=0.1),
    "ipo": ipo_loss,
}


@pytest.fixture(scope="module")
def tokenizer():
    return colour_tokenizer()


@pytest.fixture
def policy(tokenizer):
    return mistral(len(tokenizer)).eval()


def rows_of(count: int, size: int = 3, seed: int = 0) -> list[dict]:
    """Rankings a policy can learn: red before blue before green, `size` of them."""
    generator = torch.Generator().manual_seed(seed)
    answers = ["It is red.", "It is blue, I think.", "It is green."]
    rows = []
    for _ in range(count):
        places = torch.randperm(3, generator=generator)[:size].sort().values.tolist()
        asked = answers[int(torch.randint(3, (), generator=generator))]
        rows.append(ranked_row(f"Really? {asked}", [answers[place] for place in places]))
    return rows


# The losses.


def test_golden_pair():
    ratios = tensor([-10 + 11, -12 + 11.5])
    for loss in (dpo_loss, kwise_dpo_loss):
        assert loss(ratios).item() == pytest.approx(0.620957, abs=1e-6)
    # cDPO: (1 - e) of that, and e of the other order's; IPO: the squared distance of 1.5 from 5.
    other = dpo_loss(ratios.flip(1)).item()
    smoothed = dpo_loss(ratios, smoothing=0.2).item()
    assert smoothed == pytest.approx(0.8 * 0.620957 + 0.2 * other, abs=1e-6)
    assert ipo_loss(ratios).item() == pytest.approx(3.5**2)


@pytest.mark.parametrize("breaking", BREAKINGS)
@pytest.mark.parametrize("beta", [0.05, 1.0])
def test_of_two_answers_all_are_dpo(beta, breaking):
    ratios = torch.randn(5, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    expected = -torch.nn.functional.logsigmoid(beta * (ratios[:, 0] - ratios[:, 1]))
    torch.testing.assert_close(kwise_dpo_loss(ratios, beta=beta), expected)
    torch.testing.assert_close(dpo_loss(ratios, beta=beta, breaking=breaking), expected)


@pytest.mark.parametrize("loss", ["kwise", "dpo", "cdpo"])
def test_at_the_start_it_is_the_entropy_of_guessing_and_pushes_the_better_up(loss):
    for size, terms in ((2, 1), (7, 21)):
        ratios = torch.zeros(1, size, dtype=DOUBLE, requires_grad=True)
        value = LOSSES[loss](ratios)
        guessing = math.log(math.factorial(size)) if loss == "kwise" else terms * math.log(2)
        assert value.item() == pytest.approx(guessing)
        value.backward()
        gradient = ratios.grad[0]
        assert gradient[0] < 0 < gradient[-1]
        assert (gradient.diff() > 0).all()  # the better an answer, the more it is raised
        assert gradient.sum().item() == pytest.approx(0, abs=1e-12)
        if size == 2 and loss != "cdpo":
            assert gradient.tolist() == pytest.approx([-0.05, 0.05])  # beta / 2


def test_kwise_golden_list_and_lists_of_several_lengths():
    ratios = tensor(STEPS) * 10
    assert kwise_dpo_loss(ratios).item() == pytest.approx(2.526928, abs=1e-6)
    assert dpo_loss(ratios).item() == pytest.approx(2.778916, abs=1e-6)
    padded, mask = ragged([STEPS, STEPS[:3], STEPS[2:4]])
    for loss in (kwise_dpo_loss, dpo_loss, partial(dpo_loss, smoothing=0.1)):
        alone = [loss(tensor(row)).item() for row in (STEPS, STEPS[:3], STEPS[2:4])]
        assert loss(padded, mask).tolist() == pytest.approx(alone)


@settings(deadline=None, max_examples=30)
@given(size=st.integers(2, 8), shift=st.floats(-50, 50), seed=st.integers(0, 10**6))
def test_a_number_for_each_prompt_changes_nothing(size, shift, seed):
    ratios = 10 * torch.randn(3, size, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))
    for name, loss in LOSSES.items():
        if name != "ipo" or size == 2:
            torch.testing.assert_close(loss(ratios + shift), loss(ratios), rtol=1e-9, atol=1e-9)


def test_ipo_rests_at_its_margin_and_dpo_nowhere():
    ratios = tensor([5.0, 0.0]).requires_grad_()
    ipo_loss(ratios).backward()
    assert ratios.grad.abs().max() < 1e-12
    for far in (5.0, 50.0):
        ratios = tensor([far, 0.0]).requires_grad_()
        dpo_loss(ratios).backward()
        assert ratios.grad[0, 0] < -1e-4


def test_half_precisions_are_taken_to_float32_first():
    ratios = torch.tensor([[300.0, -4.03]])
    for dtype in (torch.bfloat16, torch.float16):
        for loss in LOSSES.values():
            expected = loss(ratios.to(dtype).float())
            assert expected.dtype == loss(ratios.to(dtype)).dtype == torch.float32
            torch.testing.assert_close(loss(ratios.to(dtype)), expected, rtol=0, atol=0)


def test_what_has_no_loss_is_refused():
    for bad, mask, found in (
        (tensor(STEPS), None, r"found \(1, 7\)$"),
        (tensor([1.0, 0.0]), tensor([1, 0]) > 0, r"found \(1, 2\), 1 of them masked out"),
    ):
        with pytest.raises(ValueError, match=f"expected pairs .*{found}"):
            ipo_loss(bad, mask)
    for name, loss in LOSSES.items():
        for beta in (0.0, -1.0, math.nan):
            with pytest.raises(ValueError, match="beta: expected above 0"):
                loss(tensor([1.0, 0.0]), beta=beta)
        assert loss(tensor([1.0, 0.0]), beta=0.1).isfinite(), name
    for smoothing in (-0.1, 0.5, 1.7):
        with pytest.raises(ValueError, match="smoothing: expected a share"):
            dpo_loss(tensor([1.0, 0.0]), smoothing=smoothing)


# Log-probabilities of packed lists.


def naive_logprobs(policy, prompt, answers):
    """Each answer behind the prompt by itself: (K,)."""
    found = []
    for answer in answers:
        ids = torch.tensor([prompt + answer])
        log_pi = policy(ids).logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
        found.append(log_pi.gather(-1, ids[0, len(prompt) :, None]).sum())
    return torch.stack(found)


def pieces(packed):
    """The prompt's ids and each answer's, of a packed list."""
    parts = [packed.input_ids[packed.segments == k].tolist() for k in packed.segments.unique()]
    return parts[0], parts[1:]


def gpt2(vocabulary):
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=4)).eval()


@pytest.mark.parametrize("by_sequence", [True, False])
@pytest.mark.parametrize("kind", [mistral, gpt2])
@pytest.mark.parametrize("at_a_time", [7, 1024])
def test_packed_lists_have_the_log_probabilities_of_answers_alone(
    tokenizer, kind, by_sequence, at_a_time, monkeypatch
):
    monkeypatch.setattr(dpo, "HEAD_TOKENS", at_a_time)
    policy = kind(len(tokenizer)).double().eval()
    rows = [
        ranked_row("What?", AWKWARD),
        ranked_row("A longer question, is it?", ["Yes.", "No, I think not."]),
        *rows_of(2),
    ]
    lists, _ = encode_rows(rows, tokenizer)
    batch = collate(lists)
    before = policy.config._attn_implementation
    expected = [naive_logprobs(policy, *pieces(packed)) for packed in lists]
    torch.cat(expected).square().sum().backward()
    gradients = [p.grad.clone() for p in policy.parameters()]
    policy.zero_grad()
    if by_sequence:
        with attending_by_sequence(policy):
            assert policy.config._attn_implementation == "shared_prefix"
            logprobs, tokens = list_logprobs(policy, batch)
    else:
        logprobs, tokens = list_logprobs(policy, batch)
    assert policy.config._attn_implementation == before
    for row, tokens_row, mask, packed, alone in zip(
        logprobs, tokens, batch["mask"], lists, expected, strict=True
    ):
        torch.testing.assert_close(row[mask], alone, rtol=1e-9, atol=1e-9)
        assert tokens_row[mask].tolist() == [len(answer) for answer in pieces(packed)[1]]
        assert row[~mask].abs().sum() == tokens_row[~mask].sum() == 0
    logprobs.square().sum().backward()
    for parameter, gradient in zip(policy.parameters(), gradients, strict=True):
        assert (parameter.grad - gradient).norm() <= 1e-6 * gradient.norm()  # norms are in float32


def test_score_packed_keeps_the_order_and_any_batching(tokenizer, policy):
    lists, _ = encode_rows([*rows_of(5), *rows_of(3, size=2)], tokenizer)
    together = score_packed(policy, lists)
    for packed, row in zip(lists, together, strict=True):
        (alone,) = score_packed(policy, [packed])
        torch.testing.assert_close(row, alone, rtol=1e-5, atol=1e-5)
        assert row.shape == packed.ends.shape


# Training.


def weights(policy):
    return [p.detach().clone() for p in policy.parameters()]


@pytest.mark.parametrize("loss", ["kwise", "dpo", "ipo"])
def test_a_policy_learns_an_order(tokenizer, policy, loss):
    size = 2 if loss == "ipo" else 3
    reference = copy.deepcopy(policy)
    held_out = rows_of(40, size, seed=1)
    history = train_dpo(
        policy,
        rows_of(120, size),
        tokenizer=tokenizer,
        loss=LOSSES[loss],
        lr=3e-3,
        validation_rows=held_out,
    )
    before, after = history[1], history[-1]
    assert (before["best"], before["worst"], before["accuracy"]) == (0, 0, 0.5)
    assert after["accuracy"] > 0.95
    lists, _ = encode_rows(held_out, tokenizer)
    expected = list_metrics(score_packed(policy, lists), score_packed(reference, lists))
    assert {key: after[key] for key in expected} == pytest.approx(expected, abs=1e-4)
    assert after["best"] > after["worst"]
    guessing = {"kwise": math.log(6), "dpo": 3 * math.log(2), "ipo": 25.0}[loss]
    assert history[2]["loss"] == pytest.approx(guessing, rel=0.1)
    assert history[-2]["loss"] < 0.8 * guessing
    assert policy.config._attn_implementation == "sdpa"


def test_tokens_are_those_of_packed_lists_and_not_of_their_pairs(tokenizer, policy):
    """A 7-list: P + A tokens, where its 21 pairs of sequences hold 42 P + 6 A."""
    rows = [ranked_row("What is it?", AWKWARD), ranked_row("Why?", AWKWARD[::-1])]
    lists, _ = encode_rows(rows, tokenizer)
    read = []
    embeddings = policy.get_input_embeddings()
    embeddings.register_forward_hook(lambda _, inputs, __: read.append(inputs[0].shape))
    history = train_dpo(policy, rows, tokenizer=tokenizer)
    prompt, answers = (sum(map(len, part)) for part in zip(*map(sizes, lists), strict=True))
    assert history[0]["tokens"] == prompt + answers == sum(len(p.input_ids) for p in lists)
    longest = max(len(packed.input_ids) for packed in lists)
    assert read == [(2, longest)] * 2  # the reference's log-probabilities once, and the step
    pairs = sum(
        len(p + a) + len(p + b)
        for p, each in map(pieces, lists)
        for i, a in enumerate(each)
        for b in each[i + 1 :]
    )
    assert pairs == 42 * prompt + 6 * answers


def sizes(packed):
    """Of a packed list a list as long as its prompt, and one as long as its answers together."""
    prompt, answers = pieces(packed)
    return prompt, [*chain.from_iterable(answers)]


def test_the_reference_is_the_start_unless_given(tokenizer):
    rows = rows_of(8)
    start, other = mistral(len(tokenizer)), mistral(len(tokenizer))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.05 * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(2)
            )
    found = []
    for reference in (None, copy.deepcopy(start), other):
        policy = copy.deepcopy(start)
        held = weights(reference) if reference else None
        train_dpo(policy, rows, tokenizer=tokenizer, reference=reference, batch_size=4)
        found.append(weights(policy))
        if held:
            assert all(a.equal(b) for a, b in zip(weights(reference), held, strict=True))
    none, same, different = found
    assert all(a.equal(b) for a, b in zip(none, same, strict=True))
    assert not all(a.equal(b) for a, b in zip(none, different, strict=True))


def test_the_likelihood_term_is_that_of_the_best_answer_per_token(tokenizer):
    """With a loss of nothing, the loss and gradient of -log pi(best) / tokens alone."""
    rows = rows_of(3)
    policy, twin = mistral(len(tokenizer)), mistral(len(tokenizer))

    def nothing(ratios, mask):
        return 0 * ratios.sum(1) + 2.0

    history = train_dpo(policy, rows, tokenizer=tokenizer, loss=nothing, nll_weight=0.5)

    lists, _ = encode_rows(rows, tokenizer)
    nll = [
        -naive_logprobs(twin, prompt, answers[:1])[0] / len(answers[0])
        for prompt, answers in map(pieces, lists)
    ]
    expected = 0.5 * torch.stack(nll).mean()
    expected.backward()
    norm = torch.stack([p.grad.norm() for p in twin.parameters()]).norm()
    assert history[1]["loss"] == pytest.approx(2 + expected.item(), rel=1e-5)
    assert history[1]["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)


def test_only_what_is_unfrozen_is_trained(tokenizer, policy):
    trained = unfreeze_last(policy, 1)
    before = dict(zip(dict(policy.named_parameters()), weights(policy), strict=True))
    train_dpo(policy, rows_of(16), tokenizer=tokenizer, batch_size=4)
    changed = tuple(n for n, p in policy.named_parameters() if not p.equal(before[n]))
    assert changed == trained.names


def test_a_loss_of_ones_own_sees_ratios_and_masks(tokenizer, policy):
    seen = []

    def mine(ratios, mask):
        seen.append((ratios.detach(), mask))
        return (ratios[:, 1] - ratios[:, 0]) * mask[:, 1]

    train_dpo(
        policy, [*rows_of(3), *rows_of(3, size=2)], tokenizer=tokenizer, loss=mine, batch_size=6
    )
    ((ratios, mask),) = seen
    assert sorted(mask.sum(1).tolist()) == [2, 2, 2, 3, 3, 3]
    assert ratios.abs().max() < 1e-5  # the reference is the policy


def test_the_same_seed_gives_the_same_policy(tokenizer):
    found = []
    for seed in (1, 1, 2):
        policy = mistral(len(tokenizer))
        train_dpo(policy, rows_of(24), tokenizer=tokenizer, batch_size=4, epochs=2, seed=seed)
        found.append(weights(policy))
    first, again, other = found
    assert all(a.equal(b) for a, b in zip(first, again, strict=True))
    assert not all(a.equal(b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("own_reference", [True, False])
def test_a_stopped_run_goes_on_with_its_reference(tokenizer, tmp_path, own_reference):
    """Stopped at step 12 and started again, also with the policy that has moved by then."""
    reference = None if own_reference else mistral(len(tokenizer))
    options = {"tokenizer": tokenizer, "reference": reference, "batch_size": 2, "epochs": 2}
    whole = mistral(len(tokenizer))
    train_dpo(whole, rows_of(20), **options)

    policy, seen = mistral(len(tokenizer)), []

    def stopping(ratios, mask):
        seen.append(ratios)
        if len(seen) == 12:
            raise KeyboardInterrupt
        return kwise_dpo_loss(ratios, mask)

    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train_dpo(policy, rows_of(20), loss=stopping, folder=folder, **options)
    assert (folder / "reference.safetensors").exists()
    with pytest.raises(ValueError, match=r"reference.safetensors: expected .* found those of oth"):
        train_dpo(policy, rows_of(20, seed=1), folder=folder, **options)
    train_dpo(policy, rows_of(20), loss=stopping, folder=folder, **options)
    assert 12 < len(seen) < 32  # it did not begin again
    assert all(a.equal(b) for a, b in zip(weights(policy), weights(whole), strict=True))
    assert [*folder.iterdir()] == []


def test_a_device_sets_the_precision_of_reference_and_training(tokenizer):
    device = Device(torch.device("cpu"), torch.bfloat16, "sdpa", 1, {})
    found = []
    for each in (None, device):
        policy, seen = mistral(len(tokenizer)), []

        def loss(ratios, mask, seen=seen):
            seen.append(ratios.detach())
            return kwise_dpo_loss(ratios, mask)

        train_dpo(policy, rows_of(4), tokenizer=tokenizer, loss=loss, device=each, batch_size=4)
        lists, _ = encode_rows(rows_of(4), tokenizer)
        found.append((seen[0], score_packed(mistral(len(tokenizer)), lists, each)))
        assert next(policy.parameters()).dtype == torch.float32
    (single, exact), (half, rounded) = found
    assert single.abs().max() < 1e-4
    assert half.abs().max() < 0.5  # the same rounding in both, up to batching
    difference = torch.stack(exact) - torch.stack(rounded)
    assert 1e-3 < difference.abs().max() < 3  # of answers of 60 nats


def test_dropout_is_off_where_the_reference_is_measured(tokenizer):
    policy = gpt2(len(tokenizer)).train()
    lists, _ = encode_rows(rows_of(2), tokenizer)
    assert torch.stack(score_packed(policy, lists)).equal(torch.stack(score_packed(policy, lists)))


def test_bad_input_leaves_the_policy_as_it_was(tokenizer, policy):
    before = weights(policy)
    for rows, message in (
        ([], "expected lists of two answers or more, found no row"),
        ([*rows_of(2), ranked_row("What?", ["A."])], "found 1 in row 2"),
    ):
        with pytest.raises(ValueError, match=message):
            train_dpo(policy, rows, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="found 1 in row 1"):
        train_dpo(
            policy, rows_of(1), tokenizer=tokenizer, validation_rows=[ranked_row("A?", ["B."])]
        )
    for name, value in (("sliding_window", 8), ("max_position_embeddings", 20)):
        kept = getattr(policy.config, name)
        setattr(policy.config, name, value)
        with pytest.raises(ValueError, match=r"MistralForCausalLM cannot have packed rows of \d+"):
            train_dpo(policy, rows_of(2), tokenizer=tokenizer)
        setattr(policy.config, name, kept)
    policy.config.logit_scale = 0.1
    with pytest.raises(ValueError, match=r"plain logits, found logit_scale 0.1"):
        train_dpo(policy, rows_of(2), tokenizer=tokenizer)
    policy.config.logit_scale = None
    eager = mistral(len(tokenizer))
    eager.set_attn_implementation("eager")
    for tuned, reference in ((eager, None), (policy, eager)):
        with pytest.raises(ValueError, match="MistralForCausalLM cannot have packed rows"):
            train_dpo(tuned, rows_of(2), tokenizer=tokenizer, reference=reference)
    mamba = MambaForCausalLM(MambaConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1))
    with pytest.raises(ValueError, match="MambaForCausalLM cannot have packed rows"):
        train_dpo(mamba, rows_of(2), tokenizer=tokenizer)
    assert all(a.equal(b) for a, b in zip(weights(policy), before, strict=True))


def test_packable_is_what_sees_all_before_it_from_positions_given(tokenizer):
    trunk = mistral(len(tokenizer)).model
    assert packable(trunk, 512)
    assert not packable(trunk, 513)  # its context
    trunk.config.sliding_window = 40
    assert packable(trunk, 40)
    assert not packable(trunk, 41)
    trunk.config.layer_types = ["full_attention", "linear_attention"]
    assert not packable(trunk, 20)
    bloom = BloomModel(BloomConfig(vocab_size=300, hidden_size=16, n_layer=1, n_head=2))
    bloom.config.max_position_embeddings = 100
    bloom.config._attn_implementation = "sdpa"
    assert not packable(bloom, 20)  # positions of another kind


def test_list_metrics_by_hand():
    after = [torch.tensor([1.0, 3.0, 3.0]), torch.tensor([2.0, 0.0])]
    before = [torch.tensor([0.0, 1.0, 1.0]), torch.tensor([1.0, 1.0])]
    # h: 1, 2, 2 and 1, -1. Pairs: wrong, wrong, tied; right.
    found = list_metrics(after, before)
    assert found == {"best": 1.0, "worst": 0.5, "accuracy": (0.5 + 1) / 4}
