"""Two processes share the answers that one would sample, and end with one policy."""

import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY

SCRIPT = """
import sys
import torch
from transformers import MistralConfig, MistralForCausalLM
from accelerate import PartialState
from starling_nb.data.chat import train_tokenizer
from starling_nb.policy.objectives import PPO
from starling_nb.policy.rl import tune_policy

torch.set_num_threads(1)
tokenizer = train_tokenizer(["What is the capital of France? It is Paris."] * 3, 300)
torch.manual_seed(0)
policy = MistralForCausalLM(MistralConfig(
    vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
    initializer_range=0.1, sliding_window=None))
prompts = [[{"role": "user", "content": text}] for text in ("Hello.", "What is 2 + 2?", "Why?")]
asked = []

def reward_fn(conversations):
    asked.extend(talk[-1]["content"] for talk in conversations)
    return torch.tensor([float(len(talk[-1]["content"])) for talk in conversations])

policy, history = tune_policy(
    policy, reward_fn, prompts, tokenizer=tokenizer, objective=PPO(), whitening=True, kl_coef=0.1,
    iterations=3, batch_size=16, minibatch_size=8, samples=2, max_new_tokens=8)
whitened = []

def seen(logprobs, sampled):
    whitened.append(sampled.advantages[sampled.mask])
    return logprobs.sum() * 0, {}

tune_policy(
    policy, reward_fn, prompts, tokenizer=tokenizer, objective=seen, whitening=True,
    iterations=1, epochs=1, batch_size=16, minibatch_size=16, max_new_tokens=8)
state = {"history": history, "asked": asked, "weights": policy.state_dict()}
state["whitened"] = whitened[0]
torch.save(state, f"{sys.argv[1]}/{PartialState().process_index}.pt")
"""


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    """What each process ended with: those of a run of one and of a run of two."""
    found = {}
    for count in (1, 2):
        folder = tmp_path_factory.mktemp(f"of_{count}")
        (folder / "tune.py").write_text(SCRIPT)
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        subprocess.run(
            [sys.executable, *launch, str(folder / "tune.py"), str(folder)],
            cwd=REPOSITORY,
            env={"PATH": "/usr/bin:/bin", "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"},
            check=True,
            capture_output=True,
            timeout=300,
        )
        paths = [folder / f"{rank}.pt" for rank in range(count)]
        found[count] = [torch.load(path, weights_only=True) for path in paths]
    return found


def test_both_end_with_the_same_policy_and_history(states):
    first, second = states[2]
    assert first["history"] == second["history"]
    for name, value in first["weights"].items():
        assert torch.equal(value, second["weights"][name]), name


def test_they_share_the_answers_of_a_run_of_one(states):
    """Before the first update: the same sixteen answers, eight in each process."""
    (alone,) = states[1]
    shares = [state["asked"][:8] for state in states[2]]
    assert sorted(shares[0] + shares[1]) == sorted(alone["asked"][:16])
    assert shares[0] != shares[1]
    for name in ("reward", "kl", "length", "finished"):
        both, one = (states[n][0]["history"][0][name] for n in (2, 1))
        assert both == pytest.approx(one, abs=1e-5), name


def test_advantages_are_whitened_over_the_answers_of_both(states):
    shares = [state["whitened"] for state in states[2]]
    together = torch.cat(shares)
    assert together.mean().item() == pytest.approx(0, abs=1e-5)
    assert together.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert abs(shares[0].mean().item()) > 1e-3
