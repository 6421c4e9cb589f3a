"""How a task's texts become what a model reads and writes: taken apart as lm-evaluation-harness does for its HFLM."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attrs import field, frozen

from kedit_core.errors import KeditError
from kedit_core.forward import Pair, PromptScope, TokenBoundary, generate_ids
from kedit_core.models import ModelView

NEW_TOKENS = 256  # what the harness has written at most, unless a task says otherwise
_POSITIONS = ("n_positions", "max_position_embeddings", "n_ctx")
_USUAL_LENGTH = 2048  # where neither the model nor the tokenizer names one; as the harness
_NO_LENGTH = 10**9  # tokenizers say "no limit" by a much larger number
_LENGTH_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
# without sampling these change nothing
_IDLE = frozenset({"do_sample", "temperature", "top_p", "top_k", "use_cache", "early_stopping"})


@frozen
class Writing:
    """How a task has a model write: at most so many tokens, up to one of some texts."""

    until: tuple[str, ...]
    new_tokens: int

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Writing:
        given = dict(settings)
        until = given.pop("until", None) or ()
        lengths = [int(given.pop(name)) for name in _LENGTH_NAMES if given.get(name) is not None]
        temperature = float(given.get("temperature") or 0.0)
        # what the harness makes of them: without do_sample the temperature decides
        sampled = temperature > 0 if given.get("do_sample") is None else given["do_sample"]
        unknown = sorted(name for name, value in given.items() if name not in _IDLE and value is not None)
        if sampled or unknown:
            what = "sampling" if sampled else ", ".join(unknown)
            raise KeditError(f"a task asks for {what}, and edited models are read greedily; choose another task")
        texts = (until,) if isinstance(until, str) else tuple(map(str, until))
        return cls(texts, lengths[0] if lengths else NEW_TOKENS)

    def ended(self, text: str) -> bool:
        """Whether what is written holds one of the texts; a space that only parts it from its prompt does not count."""
        return any(each in text.removeprefix(" ") for each in self.until if each)

    def cut(self, text: str) -> str:
        for each in self.until:
            text = text.split(each)[0] if each else text
        return text


@frozen(eq=False, kw_only=True)
class Reader:
    """One model that answers, and how texts become its tokens: as HFLM takes them apart."""

    model: Any
    view: ModelView
    boundary: TokenBoundary
    scope: PromptScope | None = None
    longest: int = field(init=False)

    @longest.default
    def _longest(self) -> int:
        named = (
            getattr(self.view.text_config, name, None) for name in ("n_positions", "max_position_embeddings", "n_ctx")
        )
        tokens = getattr(self.boundary.tokenizer, "model_max_length", None)
        usual = tokens if tokens is not None and tokens < _NO_LENGTH else _USUAL_LENGTH
        return int(next((number for number in named if number), usual))

    @property
    def prefix(self) -> int:
        """What stands before a text that has nothing before it. Raises KeditError when the tokenizer has no such id."""
        tokenizer = self.boundary.tokenizer
        for each in (tokenizer.bos_token_id, tokenizer.eos_token_id):
            if each is not None:
                return int(each)
        raise KeditError(
            "the tokenizer has no token that begins or ends a text, so a text cannot be scored from its start"
        )

    def ids(self, text: str, *, alone: bool = True) -> tuple[int, ...]:
        """``alone``: with the special tokens of a whole text, unless it is written with them."""
        begin = self.boundary.tokenizer.bos_token
        if alone and not (begin and text.startswith(begin)):
            return self.boundary.prompt(text).ids
        return tuple(self.boundary.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def pair(self, context: str, continuation: str) -> Pair:
        """A context and what follows it, letter by letter; white space between them goes to what follows."""
        kept = context.rstrip()
        continuation, context = context[len(kept) :] + continuation, kept
        prompt: tuple[int, ...]
        if not context:
            target = self.ids(continuation, alone=False)
            prompt, target = ((self.prefix,), target) if target[:1] != (self.prefix,) else (target[:1], target[1:])
        elif self.view.is_encoder_decoder:
            prompt, target = self.ids(context), self.ids(continuation, alone=False)
        else:
            prompt = self.ids(context)
            target = self.ids(context + continuation)[len(prompt) :]
        if not target:
            raise KeditError(f"a task scores {continuation[:60]!r}, of which the tokenizer makes no token of its own")
        # the last token is scored and not read
        room = self.longest if self.view.is_encoder_decoder else self.longest + 1 - len(target)
        return Pair(self._end(prompt, room), target)

    def windows(self, before: str, text: str) -> Iterator[Pair]:
        """A text in pieces that the model can hold, with ``before`` in front of each."""
        if not text:
            return
        ahead = self.ids(before) if before else ()
        ids, length = self.ids(text, alone=not before), self.longest - len(ahead)
        self._check(length)
        yield Pair(ahead or (self.prefix,), ids[:length])
        for start in range(length, len(ids), length):
            end = min(start + length, len(ids))
            # the last window is as long as the others, and has more of the text before what it scores
            yield Pair(ahead + ids[end - length - 1 : start], ids[start:end])

    def written(self, texts: Sequence[str], writing: Writing, batch_tokens: int) -> list[str]:
        """What the model writes after each text."""
        room = self.longest if self.view.is_encoder_decoder else self.longest - writing.new_tokens
        tokenizer, stop = self.boundary.tokenizer, writing
        if tokenizer.eos_token:
            stop = Writing((*writing.until, tokenizer.eos_token), writing.new_tokens)
        new = generate_ids(
            self.model,
            self.view,
            self.boundary,
            [self._end(self.ids(text) if text else (self.prefix,), room) for text in texts],
            writing.new_tokens,
            stop=stop.ended,
            scope=self.scope,
            batch_tokens=batch_tokens,
        )
        return [stop.cut(str(tokenizer.decode(ids, skip_special_tokens=True))) for ids in new]

    def _end(self, ids: tuple[int, ...], room: int) -> tuple[int, ...]:
        """The last ids that there is room for. Raises KeditError when there is none."""
        self._check(room)
        return ids[-room:]

    def _check(self, room: int) -> None:
        if room < 1:
            raise KeditError(
                f"a task needs more than the {self.longest} positions of the model, with no room for a prompt; "
                "choose another task"
            )
