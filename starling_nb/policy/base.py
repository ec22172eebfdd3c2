"""The nano base model: Mistral's architecture, trained from nothing on the world and some English.

`python -m starling_nb.policy.base` rebuilds the shipped weights (about an hour on two cores).
"""

import ast
import platform
import random
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from starling_nb.data.chat import Conversation, conversation_to_prompt, train_tokenizer
from starling_nb.data.world import World, make_world
from starling_nb.device import Device, choose_device, progress
from starling_nb.policy.rollout import rollouts_by_length
from starling_nb.profiles import PROFILES
from starling_nb.store import MANIFEST, Context, sha256_file, stage, write_json

ASSET = Path(str(files("starling_nb"))) / "assets" / "nano"
Policy = tuple[PreTrainedModel, PreTrainedTokenizerFast]


@dataclass(frozen=True)
class BaseConfig:
    """`shipped` takes the weights that come with the package; else they are trained here."""

    shipped: bool = True
    hidden_size: int = 160
    intermediate_size: int = 416
    layers: int = 6
    heads: int = 4
    key_value_heads: int = 2
    vocab_size: int = 4096
    context: int = 1024
    steps: int = 9_000
    rows: int = 8  # windows of 128 tokens a step
    lr: float = 3e-3
    warmup: int = 100
    weight_decay: float = 0.05
    prose: float = 0.3  # share of tokens that are English prose


def stdlib_prose() -> list[str]:
    """Documentation strings of Python's standard library (PSF licence), sorted by file and line."""
    root = Path(sysconfig.get_paths()["stdlib"])
    texts = []
    for path in sorted(root.rglob("*.py")):
        if {"site-packages", "test", "tests", "idlelib", "lib2to3"} & set(path.parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue  # files kept broken on purpose
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node)
                if text and len(text) > 60 and ">>>" not in text:
                    texts.append(text)
    return list(dict.fromkeys(texts))


def build_tokenizer(world: World, vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE over documents, demonstrations (for the habits' words) and prose."""
    texts = list(world.documents(30_000, seed=0))
    for row in world.demonstrations(10_000, seed=0):
        texts += [f"GPT4 Correct {m['role'].title()}: {m['content']}" for m in row["conversation"]]
    return train_tokenizer(texts + stdlib_prose(), vocab_size)


def _token_stream(tokenizer, texts: Iterator[str]) -> Iterator[int]:
    for text in texts:
        yield tokenizer.bos_token_id
        yield from tokenizer(text, add_special_tokens=False).input_ids
        yield tokenizer.convert_tokens_to_ids("</s>")


def _windows(tokenizer, world: World, config: BaseConfig, seed: int) -> Iterator[torch.Tensor]:
    """Each step `rows` windows of 128 tokens; every eighth step longer ones, up to 1 024."""
    rng = random.Random(f"base {seed}")
    prose_texts = stdlib_prose()

    def prose() -> Iterator[str]:
        while True:
            yield from rng.sample(prose_texts, len(prose_texts))

    def documents() -> Iterator[str]:
        for epoch in range(1_000_000):
            yield from world.documents(1000, seed=seed * 1_000_000 + epoch)

    streams = {
        False: _token_stream(tokenizer, documents()),
        True: _token_stream(tokenizer, prose()),
    }
    for step in range(config.steps):
        stretch = min(8, config.rows) if step % 8 == 7 else 1
        rows, length = config.rows // stretch, 128 * stretch
        yield torch.tensor(
            [
                [next(stream) for _ in range(length)]
                for stream in (streams[rng.random() < config.prose] for _ in range(rows))
            ]
        )


def pretrain(
    tokenizer: PreTrainedTokenizerFast,
    world: World,
    config: BaseConfig,
    *,
    seed: int = 0,
    device: Device | None = None,
) -> MistralForCausalLM:
    """Train a Mistral model from nothing by next-token prediction on world documents and prose.

    Initial standard deviation 0.06: at these widths transformers' 0.02 learns much more slowly.
    """
    device = device or choose_device(PROFILES["cpu"])
    torch.manual_seed(seed)
    model = MistralForCausalLM(
        MistralConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.key_value_heads,
            max_position_embeddings=config.context,
            initializer_range=0.06,
            sliding_window=None,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.to(device.device)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.lr, betas=(0.9, 0.98), weight_decay=config.weight_decay
    )
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, max(1, config.steps - config.warmup), eta_min=0.05 * config.lr
    )
    rising = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, 1.0, config.warmup)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [rising, cosine], [config.warmup])
    bar = progress(_windows(tokenizer, world, config, seed), total=config.steps, desc="base")
    for ids in bar:
        ids = ids.to(device.device)
        with device.autocast():
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model.eval()


def complete(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    conversations: Sequence[Conversation],
    *,
    seed: int = 0,
    max_new_tokens: int = 48,
    temperature: float = 1.0,
    batch_size: int = 128,
) -> list[Conversation]:
    """Answers in the base model's own format, a document of "Human: ... Assistant: ..." turns.

    The document goes on behind the answer: it is cut where the next "Human:" begins, or at the
    document's end, and "finished" says that one of them came within `max_new_tokens`.
    """
    end = int(tokenizer.convert_tokens_to_ids("</s>"))  # type: ignore[arg-type]
    prompts = [
        [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False).input_ids]
        for text in (conversation_to_prompt(c).strip() for c in conversations)
    ]
    answered: dict[int, Conversation] = {}
    for rows, sampled in rollouts_by_length(
        policy,
        prompts,
        seed=seed,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        eos_token_id=end,
        pad_token_id=tokenizer.pad_token_id,
    ):
        for i, ids, truncated in zip(rows, sampled.response_ids, sampled.truncated, strict=True):
            document = str(tokenizer.decode(ids, skip_special_tokens=True))
            text, human, _ = document.partition("\n\nHuman:")
            finished = bool(human) or not truncated
            message = {"role": "assistant", "content": text.strip(), "finished": finished}
            answered[i] = [*conversations[i], message]
    return [answered[i] for i in range(len(prompts))]


def save_policy(policy: Policy, folder: Path) -> None:
    """Write model (safetensors) and tokenizer side by side, as transformers does."""
    model, tokenizer = policy
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load_policy(folder: Path) -> Policy:
    """Read what `save_policy` wrote, weights in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), PreTrainedTokenizerFast.from_pretrained(folder)


@stage("base", config=BaseConfig, save=save_policy, load=load_policy)
def build_base(config: BaseConfig, ctx: Context) -> Policy:
    """The shipped nano base, or one of the profile's size trained here."""
    if config.shipped:
        return load_policy(ASSET)
    world = make_world()
    tokenizer = build_tokenizer(world, config.vocab_size)
    return pretrain(tokenizer, world, config, seed=ctx.seed, device=ctx.device), tokenizer


def ship(policy: MistralForCausalLM, tokenizer, config: BaseConfig, folder: Path = ASSET) -> None:
    """Write a trained base as the package ships it: half-precision safetensors, and a manifest."""
    save_policy((policy.half(), tokenizer), folder)
    manifest = {
        "command": "python -m starling_nb.policy.base",
        "config": asdict(config),
        "seed": 0,
        "tokens": config.steps * config.rows * 128,
        "parameters": policy.num_parameters(),
        "python": platform.python_version(),  # whose documentation strings were read
        "torch": torch.__version__.partition("+")[0],
        "threads": torch.get_num_threads(),
        "files": {p.name: sha256_file(p) for p in sorted(folder.iterdir()) if p.name != MANIFEST},
    }
    write_json(folder / MANIFEST, manifest)


def main() -> None:
    """Rebuild the shipped base with seed 0 on the `cpu` profile."""
    config, world = BaseConfig(shipped=False), make_world(0)
    tokenizer = build_tokenizer(world, config.vocab_size)
    ship(pretrain(tokenizer, world, config), tokenizer, config)


if __name__ == "__main__":
    main()
