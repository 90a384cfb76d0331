"""Small language models that tests make on the spot, saved as people save theirs; and a server for them like vLLM's.

The copier's weights are written down, not trained: it looks a key of its question up in its documents, and copies
what stands there. Where the documents do not say, every word is as likely as any other. The babblers have
random weights.
"""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from tests.tokenizers import merging

FRAME = [
    "Answer", "the", "question", "from", "documents", ".", "Document", "Question", ":", "what",
    "is", "code", "of", "?", "and", "unknown",
]  # fmt: skip
KEYS = [f"key{i}" for i in range(10)]
FACTS = [f"fact{i}" for i in range(12)]
FILLERS = [f"filler{i}" for i in range(6)]
POSITIONS = 512


@dataclass(frozen=True, slots=True)
class Case:
    """A question whose answer stands in one of the documents."""

    question: str
    answer: str
    documents: tuple[str, ...]
    cause: int
    """Which document says it."""


def cases(count: int, seed: int = 1) -> Iterator[Case]:
    """Lookups among 2 to 6 documents. The others say something of other keys, or nothing."""
    dice = random.Random(seed)
    for _ in range(count):
        keys, facts = dice.sample(KEYS, 6), dice.sample(FACTS, 12)
        size = dice.randint(2, 6)
        documents = []
        for place in range(size):
            words = dice.choices(FILLERS, k=dice.randint(0, 8))
            if place == 0 or dice.random() < 0.7:
                said = f"the code of {keys[place]} is {facts[2 * place]} {facts[2 * place + 1]} ."
                words.insert(dice.randint(0, len(words)), said)
            documents.append(" ".join(words))
        order = dice.sample(range(size), size)
        yield Case(
            f"what is the code of {keys[0]} ?",
            f"{facts[0]} {facts[1]}",
            tuple(documents[i] for i in order),
            order.index(0),
        )


def copier(folder: Path) -> Path:
    """A transformer of two layers that copies what its documents say of the key that the question asks for.

    First layer: each token learns which tokens stand one, two and three places before it. Second layer: the last
    token of the prompt attends to the fact two places after the key that stands three places before itself; a token
    of an answer attends to the fact that follows the same token. What finds no match attends to the first token,
    which says nothing.
    """
    words = [*FRAME, *KEYS, *FACTS, *FILLERS]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="unknown"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    _copier_weights(len(words), words.index(FACTS[0]), len(FACTS)).save_pretrained(folder)
    return folder


def _copier_weights(size: int, first_fact: int, facts: int) -> GPT2LMHeadModel:
    waves, heads = 24, 3
    token, before = slice(0, size), [slice(size * i, size * (i + 1)) for i in (1, 2, 3)]
    said = slice(4 * size, 5 * size)
    place = slice(5 * size, 5 * size + 2 * waves)
    is_fact, is_first, one = range(place.stop, place.stop + 3)
    half = -(-(one + 1) // heads) * heads  # every feature is there twice, with both signs, so that the mean is 0
    width = 2 * half
    config = GPT2Config(
        vocab_size=size, n_positions=POSITIONS, n_embd=width, n_layer=2, n_head=heads, n_inner=1,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    for weights in model.parameters():
        torch.nn.init.zeros_(weights)
    frequencies = torch.from_numpy(np.random.default_rng(3).uniform(0, np.pi, waves))
    angles = torch.arange(POSITIONS)[:, None] * frequencies
    turn = lambda offset: _turned(frequencies, offset)  # noqa: E731
    rows = model.transformer
    with torch.no_grad():
        rows.wte.weight[:, token] = torch.eye(size)
        rows.wte.weight[first_fact : first_fact + facts, is_fact] = 1
        rows.wpe.weight[:, place] = torch.stack([angles.cos(), angles.sin()], 2).flatten(1).float() / waves**0.5
        rows.wpe.weight[0, is_first] = 1
        rows.wpe.weight[:, one] = 1
        for table in (rows.wte.weight, rows.wpe.weight):
            table[:, half:] = -table[:, :half]
        for block in rows.h:
            block.ln_1.weight.fill_(1)
            block.ln_2.weight.fill_(1)
        rows.ln_f.weight.fill_(1)
        # A normalised feature of size 1 has size (width / |x|²)^½, where |x|² is 6 before the first layer and 12 after.
        first, second = (width / 6) ** 0.5, (width / 12) ** 0.5
        sharp = 60 * (width // heads) ** 0.5
        for head in range(heads):
            score = [(place, turn(head + 1) * sharp / first**2, place)]
            _attend(rows.h[0], head, score, token, before[head], torch.eye(size) / first)
        only_facts = torch.zeros(size)
        only_facts[first_fact : first_fact + facts] = 1
        sharp /= second**2
        for head, (wanted, found) in enumerate(((before[2], before[1]), (token, before[0]))):
            score = [
                (wanted, torch.eye(size) * sharp, found),
                (slice(one, one + 1), torch.eye(1) * sharp, slice(is_fact, is_fact + 1)),
                (slice(one, one + 1), torch.eye(1) * 1.5 * sharp, slice(is_first, is_first + 1)),
            ]
            _attend(rows.h[1], head, score, token, said, torch.diag(only_facts) / second)
        model.lm_head.weight[:, said] = torch.eye(size) * 9 / (width / 14) ** 0.5
    return model.eval()


def _turned(frequencies: torch.Tensor, offset: int) -> torch.Tensor:
    """The matrix that turns the waves of a place into those of the place ``offset`` before it."""
    matrix = torch.zeros(2 * len(frequencies), 2 * len(frequencies))
    for i, frequency in enumerate(frequencies.tolist()):
        c, s = np.cos(-frequency * offset), np.sin(-frequency * offset)
        matrix[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = torch.tensor([[c, s], [-s, c]])
    return matrix


def _attend(
    block: Any,
    head: int,
    score: list[tuple[slice, torch.Tensor, slice]],
    source: slice,
    target: slice,
    copied: torch.Tensor,
) -> None:
    """Let a head add up the products of ``score``, and write ``copied`` of the features ``source`` into ``target``."""
    inner, write = block.attn.c_attn.weight, block.attn.c_proj.weight
    width = len(inner)
    query = width // 3 * head
    value = 2 * width + query
    at = query
    for asked, matrix, found in score:
        size = len(matrix)
        inner[asked, at : at + size] += matrix
        inner[found, width + at : width + at + size] += torch.eye(size)
        at += size
    size = len(copied)
    inner[source, value : value + size] = copied
    write[query : query + size, target] = torch.eye(size)
    write[query : query + size, width // 2 + target.start : width // 2 + target.stop] = -torch.eye(size)


def babbler(folder: Path, kind: str, positions: int = POSITIONS) -> Path:
    """A model of random weights, ``gpt2`` or ``llama``, with a byte-level tokenizer that merges across spaces."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = merging()
    tokenizer.save(str(folder / "tokenizer.json"))
    size = tokenizer.get_vocab_size()
    torch.manual_seed(7)
    if kind == "gpt2":
        config: Any = GPT2Config(
            bos_token_id=None, eos_token_id=None, vocab_size=size, n_positions=positions, n_embd=48, n_layer=2, n_head=4
        )
        model: Any = GPT2LMHeadModel(config)
    else:
        config = LlamaConfig(
            vocab_size=size, hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=positions, bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
    for weights in model.parameters():
        weights.data *= 4  # random weights are small: too small for attention to tell tokens apart
    model.save_pretrained(folder)
    return folder


def naive(folder: Path, prompts: list[list[int]], scored: int) -> np.ndarray:
    """The log probabilities of the last tokens of each prompt, as one would write it: one prompt at a time."""
    model = loaded(folder)
    return np.asarray([log_probabilities(model, tokens)[-scored:] for tokens in prompts])


def loaded(folder: Path) -> Any:
    """The model of a folder, as transformers gives it."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def log_probabilities(model: Any, tokens: list[int]) -> list[float]:
    """ln p of every token but the first, given those before it."""
    with torch.inference_mode():
        logs = model(torch.tensor([tokens])).logits[0].double().log_softmax(-1)
    return [float(logs[i, token]) for i, token in enumerate(tokens[1:])]


@contextmanager
def vllm_like(folder: Path, name: str, *, key: str | None = None, tells: bool = True) -> Iterator[str]:
    """A server on this machine that answers ``POST /v1/completions`` with ``prompt_logprobs``; its URL.

    One that does not tell leaves out the tokens of the prompt.
    """
    model = loaded(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if key is not None and self.headers["authorization"] != f"Bearer {key}":
                self.reply(401, {"error": "Unauthorized"})
            elif self.path != "/v1/completions" or body["model"] != name or body["max_tokens"] < 1:
                self.reply(404, {"message": f"The model {body['model']} does not exist."})
            else:
                choices = [choice(i, tokens) for i, tokens in enumerate(body["prompt"])]
                self.reply(200, {"object": "text_completion", "choices": choices[::-1]})

        def reply(self, status: int, body: dict[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    def choice(index: int, tokens: list[int]) -> dict[str, Any]:
        logs: list[Any] = [None]
        for token, value in zip(tokens[1:], log_probabilities(model, tokens), strict=True):
            other = (token + 1) % model.config.vocab_size
            own = {str(token): {"logprob": value, "rank": 2}} if tells else {}
            logs.append({str(other): {"logprob": -0.1, "rank": 1}, **own})
        return {"index": index, "text": "", "finish_reason": "length", "prompt_logprobs": logs}

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
