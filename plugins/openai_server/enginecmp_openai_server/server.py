"""A server that serves one model: what it is able to do, and how it is asked to generate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from enginecmp import GREEDY, Decoding, EngineError, ModelInfo

from .client import Client
from .kinds import KINDS, Kind
from .options import Settings


@dataclass(slots=True)
class Server:
    """A server that serves one model.

    Attributes:
        client: the way to it.
        model: the file of this run.
        served_model: the model's name at the server.
        kind: what needs to be told to it.
        takes_ids: prompts go as token ids; else as text.
        counts_streams: streams end with a usage.
        stream_options: the server accepts the field that asks for it.
        control_ids: end tokens, kept out by a logit bias where nothing else does.
    """

    client: Client
    model: ModelInfo
    served_model: str = ""
    kind: Kind = KINDS["openai"]
    takes_ids: bool = False
    counts_streams: bool = False
    stream_options: bool = True
    control_ids: tuple[int, ...] = ()

    @property
    def settings(self) -> Settings:
        """What the user said."""
        return self.client.settings

    @property
    def path(self) -> str:
        """The endpoint that generates."""
        return "/chat/completions" if self.settings.api == "chat" else "/completions"

    def request(
        self,
        prompt: str | tuple[int, ...],
        output_tokens: int,
        *,
        stream: bool,
        salt: str = "",
        decoding: Decoding = GREEDY,
    ) -> dict[str, Any]:
        """Return the body of a request for so many tokens.

        Args:
            prompt: text or ids.
            output_tokens: to generate, end-of-sequence ignored as far as the server can.
            stream: as events.
            salt: keeps prefix caches from finding anything, where the server knows the field.
            decoding: how ids are chosen, and what ends the request.

        Raises:
            EngineError: the server cannot be told to decode so.
        """
        kind = self.kind
        fields: dict[str, Any] = {
            "model": self.served_model,
            "max_tokens": output_tokens,
            "temperature": 0,
            "stream": stream,
            **kind.fields,
        }
        if self.settings.api == "chat":
            fields["messages"] = [{"role": "user", "content": prompt}]
        else:
            fields["prompt"] = prompt
        if decoding.temperature:
            fields |= self._sampling(decoding)
        if decoding.json_schema:
            fields |= kind.schema(msgspec.json.decode(decoding.json_schema))
        if decoding.end_ids:
            fields.pop("ignore_eos", None)
            if kind.stop_field:
                fields[kind.stop_field] = list(decoding.end_ids)
        elif kind.least_field:
            fields[kind.least_field] = output_tokens
        if kind.salt_field and salt:
            fields[kind.salt_field] = salt
        if kind.control_bias and self.control_ids and not decoding.end_ids:
            fields |= {"logit_bias": {str(token): -100.0 for token in self.control_ids}, "logit_bias_type": "input_ids"}
        if stream and self.stream_options:
            fields["stream_options"] = {"include_usage": True}
        return fields | dict(self.settings.body)

    def _sampling(self, decoding: Decoding) -> dict[str, Any]:
        kind = self.kind
        if kind.sampling is None and decoding.top_k:
            msg = f"openai_server: expected no top_k, {kind.title} has no field for it; leave top_k out"
            raise EngineError(msg)
        if kind.temperature_last and decoding.top_p < 1 and decoding.temperature != 1:
            msg = (
                f"openai_server: expected top_p = 1 or temperature = 1, {kind.title} cuts by top-p before it divides "
                "by the temperature, which is another distribution; leave top_p out"
            )
            raise EngineError(msg)
        fields = {"temperature": decoding.temperature, "top_p": decoding.top_p, "seed": decoding.seed}
        return fields | dict(kind.sampling(decoding) if kind.sampling is not None else {})
