"""enginecmp engine `openai_server`: any server with an OpenAI-compatible endpoint.

The hooks, one module a concern: `facts` (what it is), `loading` (find or start the server, learn what it can do),
`requests` (one request or many at once), `scoring` (teacher-forced distributions where the server names token ids).
Below them: `options` and `address` (what the user says), `servers` (what each kind of server needs to be told),
`process` (a server of our own), `http` (HTTP/1.1 over h11), `sse` and `answer` (a streamed answer, piece by piece).
"""

from .facts import cmp_engine, cmp_probe
from .loading import cmp_load, cmp_unload
from .requests import cmp_decode, cmp_metrics, cmp_prefill, cmp_prepare, cmp_reset, cmp_step, cmp_submit
from .scoring import cmp_score

__all__ = [
    "cmp_decode",
    "cmp_engine",
    "cmp_load",
    "cmp_metrics",
    "cmp_prefill",
    "cmp_prepare",
    "cmp_probe",
    "cmp_reset",
    "cmp_score",
    "cmp_step",
    "cmp_submit",
    "cmp_unload",
]
