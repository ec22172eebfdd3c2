"""The training loop: batches, order, schedule, precision, what it leaves behind."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import MistralConfig, MistralForCausalLM
from transformers.trainer_pt_utils import safe_globals

from starling_nb import training
from starling_nb.device import Device
from starling_nb.training import MAX_TOKENS, SEAL, length_grouped_batches, train

CPU = torch.device("cpu")


def tiny_model():
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=None,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    return MistralForCausalLM(config)


def collate(ids):
    return {"input_ids": torch.tensor(ids)}


def loss(model, batch):
    return model(**batch, labels=batch["input_ids"]).loss


def counting(rows):
    """Batches of rows that count upwards modulo 20: a rule that one layer learns quickly."""
    generator = random.Random(0)
    starts = [[generator.randrange(20) for _ in range(4)] for _ in range(rows)]
    return [[[(start + i) % 20 for i in range(6)] for start in batch] for batch in starts]


def fit(model, batches, **changes):
    options = {"collate": collate, "loss": loss, "lr": 1e-2, "seed": 0, "device": None}
    return train(model, batches, **(options | changes), desc="test")


def test_several_gpus_are_not_given_joined_batches(monkeypatch):
    prepare = training.TrainingArguments.__post_init__

    def on_two_gpus(args):
        prepare(args)
        args._n_gpu = 2

    monkeypatch.setattr(training.TrainingArguments, "__post_init__", on_two_gpus)
    sizes = []

    def counted(ids):
        sizes.append(len(ids))
        return collate(ids)

    fit(tiny_model(), counting(6), collate=counted)
    assert sizes == [4] * 6


@given(
    st.lists(st.integers(1, 500), max_size=200), st.integers(1, 12), st.integers(1, 5),
    st.integers(0, 2**32),
)  # fmt: skip
def test_batches_hold_each_item_once(lengths, batch_size, pool, seed):
    generator = torch.Generator().manual_seed(seed)
    batches = length_grouped_batches(lengths, batch_size, generator, pool)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    pools = -(-len(lengths) // (pool * batch_size))
    assert len(batches) <= len(lengths) / batch_size + pools


def test_batches_are_of_similar_lengths_and_come_in_random_order():
    generator = random.Random(0)
    lengths = [generator.randrange(5, 200) for _ in range(1024)]
    batches = length_grouped_batches(lengths, 8, torch.Generator().manual_seed(0))
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    assert padded < 1.1 * sum(lengths)  # random batches: about 1.7
    means = [sum(lengths[i] for i in batch) / 8 for batch in batches]
    half = len(means) // 2
    assert abs(sum(means[:half]) - sum(means[half:])) / half < 40  # short ones do not come first
    same = length_grouped_batches(lengths, 8, torch.Generator().manual_seed(0))
    assert batches == same
    assert batches != length_grouped_batches(lengths, 8, torch.Generator().manual_seed(1))


def test_each_batch_is_one_step_in_the_order_given():
    seen = []

    def spy(model, batch):
        seen.append(batch["input_ids"].tolist())
        return loss(model, batch)

    batches = counting(7)
    log = fit(tiny_model(), batches, loss=spy)
    assert seen == batches
    assert [entry["step"] for entry in log] == [1, 2, 3, 4, 5, 6, 7]


def test_a_rule_is_learned_and_the_model_ends_ready_for_use():
    model = tiny_model()
    log = fit(model, counting(120))
    assert log[0]["loss"] > 2.5
    assert log[-1]["loss"] < 1.8
    assert not model.training
    assert next(model.parameters()).dtype == torch.float32


def test_the_schedule_warms_up_and_ends_near_a_tenth():
    log = fit(tiny_model(), counting(100), lr=0.01)
    rates = [entry["learning_rate"] for entry in log]  # of every second step
    assert rates[0] < 0.005
    assert max(rates) == pytest.approx(0.01, rel=0.01)
    assert rates.index(max(rates)) <= 3
    assert rates[-1] == pytest.approx(0.001, rel=0.05)
    assert len(log) == 50


def test_gradients_are_clipped_at_norm_one():
    """So one loss blown up ten thousand times is one step like another."""
    models, norms = [tiny_model(), tiny_model()], []
    for model, factor in zip(models, (1.0, 1e4), strict=True):
        factors = iter([factor, 1.0, 1.0, 1.0])
        log = fit(model, counting(4), loss=lambda m, b, f=factors: next(f) * loss(m, b))
        norms.append(log[0]["grad_norm"])  # before clipping
    assert norms[0] > 1
    assert norms[1] == pytest.approx(1e4 * norms[0], rel=1e-3)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_same_batches_same_weights():
    first, second = tiny_model(), tiny_model()
    fit(first, counting(10))
    torch.rand(3)
    fit(second, counting(10))
    assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))


def test_nothing_is_written_or_printed(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STARLING_BATCH", "1")
    fit(tiny_model(), counting(30))
    assert list(tmp_path.iterdir()) == []
    out, err = capfd.readouterr()
    assert out == ""
    assert len(err.splitlines()) <= 10
    assert "30/30" in err


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_is_computed_in_the_devices_precision(dtype):
    """Also when it bypasses the model's own forward, as the loss of fine-tuning does."""
    products, weights = set(), set()

    def spy(model, batch):
        states = model.get_decoder()(batch["input_ids"]).last_hidden_state
        products.add(model.get_output_embeddings()(states).dtype)
        weights.update(p.dtype for p in model.parameters())
        return loss(model, batch)

    device = Device(CPU, dtype, "sdpa", 1, {})
    model = tiny_model()
    fit(model, counting(2), loss=spy, device=device)
    assert products == {dtype}
    assert weights == {torch.float32}
    model.lm_head.register_forward_hook(lambda module, inputs, output: products.add(output.dtype))
    products.clear()
    model(torch.tensor([[1, 2]]))
    assert products == {torch.float32}  # nothing of the training's precision stays on the model


def test_long_items_make_smaller_batches():
    """No batch of several items exceeds the token budget, and no item is lost."""
    lengths = [10] * 20 + [MAX_TOKENS // 2 - 1] * 5 + [3 * MAX_TOKENS]
    batches = length_grouped_batches(lengths, 12, torch.Generator().manual_seed(0))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[i] for i in batch)
        assert len(batch) == 1 or len(batch) * longest <= MAX_TOKENS
    assert max(map(len, batches)) == 12


# ---------------------------------------------------------------------------------------- resuming
class Stopped(Exception):
    """Stands for the kill of a run."""


def stop_at(step):
    """The loss of a run that is stopped at a step, and the list of the steps it was asked for."""
    steps = []

    def stopping(model, batch):
        steps.append(len(steps) + 1)
        if len(steps) == step:
            raise Stopped
        return loss(model, batch)

    return stopping, steps


def stopped(folder, step, steps=20, **changes):
    """What a run of so many steps, stopped in one of them, leaves in the folder."""
    with pytest.raises(Stopped):
        fit(tiny_model(), counting(steps), loss=stop_at(step)[0], folder=folder, **changes)
    return sorted(path.name for path in folder.iterdir())


def same_weights(a, b):
    return all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path, capfd):
    """And to the same log, whose entries are means over two steps here."""
    whole, resumed = tiny_model(), tiny_model()
    log = fit(whole, counting(100))
    assert stopped(tmp_path, step=76, steps=100) == ["checkpoint-70"]
    never, steps = stop_at(None)
    assert fit(resumed, counting(100), loss=never, folder=tmp_path) == log
    assert len(steps) == 30
    assert same_weights(whole, resumed)
    assert list(tmp_path.iterdir()) == []
    said = capfd.readouterr().err.splitlines()
    assert [line for line in said if not line.startswith("test: ")] == []  # the bar alone speaks
    assert sum("100 % (100/100)" in line for line in said) == 2


def test_a_run_may_be_stopped_again_and_again(tmp_path):
    whole, resumed = tiny_model(), tiny_model()
    fit(whole, counting(20))
    for step in (3, 7, 2, 7):  # counted anew each time: until 3, 7, 5 + 2 and 5 + 7
        stopped(tmp_path, step)
    never, steps = stop_at(None)
    fit(resumed, counting(20), loss=never, folder=tmp_path)
    assert len(steps) == 10
    assert same_weights(whole, resumed)


def test_a_state_cut_short_is_not_used(tmp_path, monkeypatch):
    whole, resumed = tiny_model(), tiny_model()
    fit(whole, counting(20))
    seal = training.write_json

    def killed(path, settings):
        if path.parent.name == "checkpoint-15":
            raise Stopped
        seal(path, settings)

    monkeypatch.setattr(training, "write_json", killed)
    assert stopped(tmp_path, step=None) == ["checkpoint-10", "checkpoint-15"]
    monkeypatch.undo()
    (tmp_path / "checkpoint-15" / "model.safetensors").write_bytes(b"cut")
    never, steps = stop_at(None)
    fit(resumed, counting(20), loss=never, folder=tmp_path)
    assert len(steps) == 10
    assert same_weights(whole, resumed)


def test_nothing_saved_can_run_code(tmp_path):
    """Weights are safetensors, the rest JSON or what torch reads with weights_only=True."""
    stopped(tmp_path, step=6)
    for path in (tmp_path / "checkpoint-5").iterdir():
        if path.suffix in (".pt", ".pth"):
            with safe_globals():  # numpy's generator state
                torch.load(path, weights_only=True)
        else:
            assert path.suffix in (".json", ".safetensors"), path.name


def test_another_runs_state_is_refused(tmp_path):
    stopped(tmp_path, step=6)
    whole = r"checkpoint-5: expected .*'steps': 20, 'lr': 0.02, .*'lr': 0.01.*empty the folder"
    with pytest.raises(ValueError, match=whole):
        fit(tiny_model(), counting(20), folder=tmp_path, lr=0.02)
    with pytest.raises(ValueError, match=r"'seed': 1}, found .*'seed': 0}"):
        fit(tiny_model(), counting(20), folder=tmp_path, seed=1)
    with pytest.raises(ValueError, match=r"'steps': 19, .*'steps': 20"):
        fit(tiny_model(), counting(19), folder=tmp_path)
    assert (tmp_path / "checkpoint-5" / SEAL).is_file()
