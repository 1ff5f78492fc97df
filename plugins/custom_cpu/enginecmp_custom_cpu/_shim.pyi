from collections.abc import Callable, Sequence

class Draws:
    def draw(self) -> int: ...

class Product:
    def multiply(self) -> None: ...
    def answer(self) -> bytes: ...

class Elements:
    def run(self) -> None: ...
    def answer(self) -> bytes: ...

class Layer:
    def run(self) -> None: ...
    def answer(self) -> bytes: ...

class Session:
    @property
    def vocabulary(self) -> int: ...
    def reset(self) -> None: ...
    def close(self) -> None: ...
    def prefill(self, token_ids: Sequence[int], output_tokens: int) -> int: ...
    def decode(self, n_tokens: int) -> tuple[list[int], list[int]]: ...
    def submit(
        self,
        id: str,
        token_ids: Sequence[int],
        output_tokens: int,
        strategy: tuple[float, int, float, int] | None,
        end_ids: Sequence[int],
    ) -> bool: ...
    def decode_by(self, strategy: tuple[float, int, float, int] | None) -> None: ...
    def step(self) -> list[tuple[str, int]]: ...
    def score(self, token_ids: Sequence[int]) -> bytes: ...
    def profile(self, token_ids: Sequence[int], n_tokens: int) -> dict[str, float]: ...
    def metrics(self) -> dict[str, float]: ...
    def draws_after(
        self, token_ids: Sequence[int], temperature: float, top_k: int, top_p: float, seed: int
    ) -> Draws: ...
    def product(self, left: bytes, transposed: bytes, inner: int, threads: int) -> Product: ...
    def elements(
        self,
        function: str,
        a: bytes,
        b: bytes,
        *,
        length: int,
        head_dim: int,
        start: int,
        rope_base: float,
        epsilon: float,
    ) -> Elements | None: ...
    def layer(
        self,
        array: Callable[[str], bytes],
        *,
        rows: int,
        past: int,
        width: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        feed_forward: int,
        rope_base: float,
        epsilon: float,
    ) -> Layer: ...

def load(
    path: str,
    *,
    threads: int,
    context_tokens: int,
    max_sequences: int,
    prompt_chunk: int,
    kv_type: str,
    sliding_window: int,
    context_shift: bool,
    prefix_cache: bool,
    draft: str | None,
    lookup: int,
    draft_tokens: int,
    packs_at_load: bool,
) -> Session: ...
def instruction_set() -> str: ...
