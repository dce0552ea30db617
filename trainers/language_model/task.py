"""Language models as the trainer sees them: windows of tokens in, predictions of text judged."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn

from trainers.checkpoints import Checkpoint, read_checkpoint
from trainers.errors import CheckpointError, ConfigurationError
from trainers.language_model.corpus import find_texts
from trainers.language_model.counting import CountedModel
from trainers.language_model.generation import Sampling, continuation
from trainers.language_model.judging import HeldOutWindows, Score, loss_of
from trainers.language_model.low_rank import (
    LowRankConfig,
    adapters_of,
    add_adapters,
    merged_weights,
)
from trainers.language_model.network import Decoder, DecoderConfig
from trainers.language_model.shards import default_cache, shards_of
from trainers.language_model.tokenization import (
    BYTES,
    Kind,
    Tokenizer,
    check_same,
    described,
    saved_tokenizer,
)
from trainers.language_model.window_order import WindowOrder
from trainers.run_config import RunConfig
from trainers.tables import print_table

if TYPE_CHECKING:
    from collectives import Communicator

PAIR_VOCABULARY = 2048
"""Of byte pairs, where nothing else is said."""

SAMPLE_PROMPT = "def fib("


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which text, and how it becomes tokens.

    Attributes:
        path: a file or folder, or a list of such; null for the sources of Python's standard
            library.
        tokenizer: byte pairs found in the text, or its bytes.
        vocabulary: how many tokens; 0 for 2048 of byte pairs. Of bytes there are always 256.
        held_out_share: that share of the files, chosen by a hash of their names, is judged on and
            never trained on; at least one file, and of a single one its end.
        validation_windows: how many windows of the held-out text are judged on at most.
        cache: folder where tokens are kept; null for collectives/text in the user's cache.
    """

    path: Path | list[Path] | None = None
    tokenizer: Kind = "bpe"
    vocabulary: int = 0
    held_out_share: float = 0.05
    validation_windows: int = 256
    cache: Path | None = None

    def __post_init__(self) -> None:
        if self.path == []:
            raise ConfigurationError("data.path: expected at least one path, found none")
        if self.tokenizer == "bytes" and self.vocabulary not in (0, BYTES):
            raise ConfigurationError(
                f"data.vocabulary: expected {BYTES} (or 0) with data.tokenizer bytes, "
                f"found {self.vocabulary}"
            )
        if self.tokenizer == "bpe" and self.vocabulary and self.vocabulary <= BYTES + 1:
            raise ConfigurationError(
                f"data.vocabulary: expected more than {BYTES + 1} (bytes and an end) with "
                f"data.tokenizer bpe, or 0, found {self.vocabulary}"
            )
        if not 0 < self.held_out_share < 1:
            raise ConfigurationError(
                "data.held_out_share: expected a number between 0 and 1, "
                f"found {self.held_out_share}"
            )
        if self.validation_windows < 1:
            raise ConfigurationError(
                f"data.validation_windows: expected 1 or more, found {self.validation_windows}"
            )

    @property
    def paths(self) -> list[Path] | None:
        """All paths, however they were given."""
        return [self.path] if isinstance(self.path, Path) else self.path

    @property
    def tokens(self) -> int:
        """The size of the vocabulary."""
        return self.vocabulary or (BYTES if self.tokenizer == "bytes" else PAIR_VOCABULARY)


@dataclass(frozen=True, kw_only=True)
class LanguageModelConfig(RunConfig):
    """A run of the decoder.

    Attributes:
        model: the decoder.
        data: the text.
        lora: adapters that are trained in place of the weights, which `start` says.
    """

    task: Literal["language_model"] = "language_model"
    run: Path = Path("runs/language_model")
    model: DecoderConfig = field(default_factory=DecoderConfig)
    data: DataConfig = field(default_factory=DataConfig)
    lora: LowRankConfig = field(default_factory=LowRankConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lora.rank and self.start is None:
            raise ConfigurationError(
                f"start: expected a checkpoint, whose weights stay while adapters of lora.rank "
                f"{self.lora.rank} are trained, found none"
            )

    def build(self) -> LanguageModel:
        """The task, with its tokens mapped; makes them if they are not in the cache."""
        return LanguageModel(self)


class LanguageModel:
    """The task of a `LanguageModelConfig`."""

    name = "language_model"
    unit = "tokens"

    def __init__(self, config: LanguageModelConfig) -> None:
        data, context = config.data, config.model.context
        self.units_per_sample = context
        self._config = config
        self._shards = shards_of(
            find_texts(data.paths, data.held_out_share),
            data.tokenizer,
            data.tokens,
            data.cache or default_cache(),
            _started_tokenizer(config),
        )
        self._order = WindowOrder(
            tokens=len(self._shards.train),
            context=context,
            batch=config.train.batch,
            seed=config.seed,
        )
        self._held_out = HeldOutWindows(
            self._shards.validation, context=context, most=data.validation_windows
        )

    def new_model(self) -> Decoder:
        """The decoder for as many tokens as the text has, with adapters if there are to be any."""
        decoder = Decoder(self._config.model, self._shards.tokenizer.vocabulary)
        if self._config.lora.rank:
            add_adapters(decoder, self._config.lora)
        return decoder

    def start_weights(self, model: nn.Module, checkpoint: Checkpoint) -> dict[str, Tensor]:
        """The checkpoint's with its adapters merged, and new adapters if there are to be any."""
        return merged_weights(checkpoint) | adapters_of(model.state_dict())

    def matrices(self, model: nn.Module) -> list[nn.Parameter]:
        """What lies between the layers; the table of tokens, norms and adapters go by Adam."""
        return [matrix for matrix in cast("Decoder", model).matrices if matrix.requires_grad]

    def samples(self, step: int, share: range) -> Tensor:
        """Windows of one token more than the context, a row each."""
        length = self._config.model.context + 1
        begins = [self._order.begin(step, position) for position in share]
        windows = np.stack([self._shards.train[begin : begin + length] for begin in begins])
        return torch.from_numpy(windows.astype(np.int64))

    def loss(self, model: nn.Module, samples: Tensor) -> Tensor:
        """The mean cross entropy of the tokens."""
        return loss_of(model, samples)

    def extent(self) -> str:
        """How often the steps pass over the text."""
        train, tokens = self._config.train, len(self._shards.train)
        passes = train.steps * train.batch * self.units_per_sample / tokens
        return f"{passes:.3g} passes over the text, {tokens:,} tokens to train on"

    def attachments(self) -> dict[str, str]:
        """The tokenizer."""
        return {"tokenizer": self._shards.tokenizer.form()}

    def check_attachments(self, attachments: dict[str, str], origin: str) -> None:
        """Refuses another tokenizer than the data's."""
        try:
            check_same(self._shards.tokenizer, saved_tokenizer(attachments, origin), origin)
        except CheckpointError as error:
            hint = "to go on with its weights on other data is `collectives finetune`"
            raise CheckpointError(f"{error}; {hint}") from None

    def evaluate(self, model: nn.Module, comm: Communicator) -> dict[str, float]:
        """Loss, perplexity and bits per byte on the held-out windows, which the ranks share out."""
        score = self._score(self._held_out.loss(model, comm))
        return {
            "validation_loss": score.loss,
            "perplexity": score.perplexity,
            "bits_per_byte": score.bits_per_byte,
        }

    def summary(self, result: dict[str, float]) -> str:
        """Loss and bits per byte."""
        return f"val {result['validation_loss']:.3f}, {result['bits_per_byte']:.2f} bits/byte"

    def report(self, model: nn.Module, folder: Path, before: dict[str, float] | None) -> None:
        """Prints the table and a sample, which is left in the folder, too."""
        tokenizer, windows = self._shards.tokenizer, self._held_out.windows
        counted = CountedModel(self._shards.train, tokenizer.vocabulary)
        known, told = windows[:, :-1], windows[:, 1:]
        losses = {
            "unigrams": -float(np.log(counted.unigram(told)).mean()),
            "bigrams": -float(np.log(counted.bigram(known, told)).mean()),
            **({} if before is None else {"before the first step": before["validation_loss"]}),
            "decoder": self._held_out.loss(model),
        }
        print_table(self._table(losses))
        sampling = Sampling(seed=self._config.seed)
        text = continuation(cast("Decoder", model), tokenizer, SAMPLE_PROMPT, sampling)
        path = folder / "sample.txt"
        path.write_text(text, encoding="utf-8")
        print(f"{text}\n\nthe sample is {path}", flush=True)

    def _score(self, loss: float) -> Score:
        return Score(loss, self._shards.bytes_per_token)

    def _table(self, losses: dict[str, float]) -> Table:
        targets, size = self._held_out.targets, self._shards.bytes_per_token
        table = Table(title=f"held out: {targets:,} tokens, {size:.2f} bytes each")
        table.add_column("model")
        for heading in ("loss", "perplexity", "bits/byte"):
            table.add_column(heading, justify="right")
        for name, loss in losses.items():
            score = self._score(loss)
            cells = (f"{loss:.3f}", f"{score.perplexity:.1f}", f"{score.bits_per_byte:.3f}")
            table.add_row(name, *cells, style="bold" if name == "decoder" else None)
        return table


def _started_tokenizer(config: LanguageModelConfig) -> Tokenizer | None:
    """The tokenizer of the checkpoint that a run starts from: its weights know no other."""
    if config.start is None:
        return None
    checkpoint = read_checkpoint(config.start)
    checkpoint.check_task(config.task, config.start)
    tokenizer = saved_tokenizer(checkpoint.attachments, str(config.start))
    wanted = (config.data.tokenizer, config.data.tokens)
    if (tokenizer.kind, tokenizer.vocabulary) != wanted:
        raise CheckpointError(
            f"{config.start} is of another vocabulary: expected {wanted[1]} tokens ({wanted[0]}), "
            f"as data.tokenizer and data.vocabulary say, found {described(tokenizer)}; a run "
            "that starts from a checkpoint has its tokenizer: leave both settings as they are there"
        )
    return tokenizer
