"""Holds a daemon's HTTP door to proto/openapi.yaml: requests are made from the document by schemathesis, inside it and
outside, and every answer must be one that the document tells of.

    schema.py SOCKET [EXAMPLES]

The daemon listens on a Unix socket alone, so a forwarder of this process stands before it on the loopback. Before the
true run it spoils one thing of the answers at a time, and each must be found.
"""

import copy
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import schemathesis
import yaml

DOCUMENT = Path(__file__).parents[2] / "proto" / "openapi.yaml"

# Models of the mock: what they do stands in docs/cli.md. `mock-internal` is left out: a 500 is never to be seen.
MODELS = ["mock", "default", "mock-queue_full", "mock-not_authorized", "mock-model_busy", "mock-load_failed",
          "mock-deadline_exceeded", "mock-damaged_model", "mock-stalled", "none such"]

# Fields whose value may be refused though the document allows it: it does not fit another one, this model, or single
# precision.
TOGETHER = {"input", "raw", "system", "max_completion_tokens", "min_tokens", "sotto.min_tokens", "logit_bias",
            "reasoning_effort", "top_logprobs", "top_p", "typical_p", "sotto.typical_p", "mirostat_tau",
            "sotto.mirostat_tau", "mirostat_eta", "sotto.mirostat_eta"}

# What the forwarder puts in place of what (as long, so that no length changes), for which operation, and the words in
# which that must be reported.
FAULTS = [
    (b'"object":"list"', b'"ubject":"list"', "listModels", '"object" is a required property'),
    (b'"object":"list"', b'"object":"lost"', "listModels", '"list" was expected'),
    (b'"state":"ready"', b'"state":"reody"', "status", "is not one of"),
    (b"200 OK", b"500 OK", "status", "a 500 that the document does not name"),
    (b"404 Not Found", b"418 Not Found", "getModel", "Undocumented status code"),
    (b'"code":"unknown_model"', b'"code":"unknown_field"', "tokenize", "is not one of"),
    (b"application/json", b"application/jsen", "getModel", "Undocumented Content-Type"),
    (b'"event":"done"', b'"event":"gone"', "generate", "is not valid under any"),
    (b"chat.completion.chunk", b"chat.completion.chank", "chatCompletions", "violates"),
    (b"data: [DONE]", b"data: [GONE]", "chatCompletions", "a stream ends by an error or by [DONE]"),
    (b"data: ", b"dato: ", "chatCompletions", "no line of a stream of events"),
]


def lines(content: bytes) -> list:
    """The values of an NDJSON body."""
    *found, rest = content.decode().split("\n")
    if rest:
        raise ValueError(f"the last line has no end: {rest!r}")
    return [json.loads(line) for line in found]


def events(content: bytes, whole: bool) -> list:
    """The data of server-sent events; `[DONE]` stays a text, and stands at the end of what did not fail. Only of the
    `whole` of a stream the end is asked for: schemathesis hangs up on long ones."""
    found = []
    for line in content.decode().split("\n"):
        if line.startswith("data: "):
            data = line.removeprefix("data: ")
            found.append(data if data.startswith("[") else json.loads(data))
        elif line and not line.startswith(":"):
            raise ValueError(f"no line of a stream of events: {line!r}")
    ends = [event == "[DONE]" or "error" in event for event in found]
    if any(ends[:-1]) or (whole and not any(ends)):
        raise ValueError("a stream ends by an error or by [DONE], and has neither before")
    return found


@schemathesis.deserializer("application/x-ndjson")
def read_lines(_context, response):
    return lines(response.content)


@schemathesis.deserializer("text/event-stream")
def read_events(_context, response):
    return events(response.content, not response.stream_cut_short)


@schemathesis.check
def server_errors_are_named(_context, response, case):
    """A status of 500 and above stands in the document by its number."""
    if response.status_code >= 500 and str(response.status_code) not in case.operation.definition.raw["responses"]:
        raise AssertionError(f"a {response.status_code} that the document does not name for this route")


@schemathesis.check
def valid_requests_are_taken(_context, response, case):
    """What the document allows is not refused as what it forbids."""
    if response.status_code == 400 and case.meta and case.meta.generation.mode.is_positive:
        error = json.loads(response.content)["error"]
        if error["param"] not in TOGETHER and error["code"] != "context_too_long":
            raise AssertionError(f"refused though the document allows it: {error['message']}")


@schemathesis.hook
def map_body(_context, body):
    """Whole numbers without a point: 1.0, an integer to JSON Schema, is none to the door."""
    if isinstance(body, dict):
        return {key: map_body(_context, value) for key, value in body.items()}
    if isinstance(body, list):
        return [map_body(_context, value) for value in body]
    return int(body) if isinstance(body, float) and body.is_integer() else body


@schemathesis.hook
def before_call(_context, case, _kwargs):
    """Some ask for lines; which ones hangs on the request alone, so that it can be repeated."""
    if "text/event-stream" in str(case.operation.definition.raw["responses"]) and len(str(case.body)) % 2:
        case.headers["Accept"] = "application/x-ndjson"


@schemathesis.check
def kinds_are_told(_context, response, case):
    """Fails never: what came of each operation is counted, so that an answer that was never seen is noticed."""
    if response.status_code < 300:
        kind = response.headers.get("content-type", ["nothing"])[0].partition(";")[0]
        with open(os.environ["SOTTO_SEEN"], "a", encoding="utf-8") as seen:
            seen.write(f"{case.operation.definition.raw['operationId']} {kind}\n")


def served(value):
    """The document without what it marks as not served yet."""
    if isinstance(value, dict):
        later = {key for key, inner in value.items() if isinstance(inner, dict) and inner.get("x-since") == "later"}
        return {key: served(inner) for key, inner in value.items() if key not in later}
    return [served(inner) for inner in value] if isinstance(value, list) else value


def closed(schema):
    """The schema in which every object has the fields that it names and no others."""
    if isinstance(schema, list):
        return [closed(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(inner) for key, inner in schema.items()}
    if isinstance(made.get("properties"), dict) and "unevaluatedProperties" not in made:
        made.setdefault("additionalProperties", False)
    return made


def nullable(schema):
    """The schema in which null is a field's absence, as it is in every request."""
    if isinstance(schema, list):
        return [nullable(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: nullable(inner) for key, inner in schema.items()}
    needed = made.get("required", [])
    if isinstance(made.get("properties"), dict):
        fields = made["properties"].items()
        made["properties"] = {
            key: field if key in needed else {"anyOf": [field, {"type": "null"}]} for key, field in fields
        }
    if needed and "type" not in made:
        # A choice among fields: one that is null is not given.
        given = {key: {"not": {"type": "null"}} for key in needed}
        made["properties"] = given | made.get("properties", {})
    return made


def document() -> dict:
    """proto/openapi.yaml as it is tested: what is served, closed, of the mock's models, a stream as a list of lines."""
    made = served(yaml.safe_load(DOCUMENT.read_text()))
    schemas = made["components"]["schemas"]
    schemas["Message"]["properties"]["role"]["enum"].remove("tool")
    # A vocabulary of 258 without a token that begins a text.
    texts, ids = schemas["CompletionRequest"]["properties"]["prompt"]["oneOf"]
    texts["minLength"] = 1
    ids["items"]["maximum"] = 257
    schemas["NativeRequest"]["properties"]["tokens"]["items"]["maximum"] = 257
    vectors = schemas["EmbeddingRequest"]["properties"]
    _, texts, ids, several = vectors["input"]["oneOf"]
    texts["items"]["minLength"] = 1
    ids["items"]["maximum"] = several["items"]["items"]["maximum"] = 257
    # As wide as the mock is.
    vectors["dimensions"]["maximum"] = 32
    # Parts of another object by allOf: closed with the whole.
    parts = {"Sampling", "MoreSampling", "Hints"}
    made["components"]["schemas"] = {name: s if name in parts else closed(s) for name, s in schemas.items()}
    for name in ["ChatRequest", "CompletionRequest", "NativeRequest", "TokenizeRequest",
                 "EmbeddingRequest"]:
        made["components"]["schemas"][name]["properties"]["model"] = {"enum": MODELS}
    for name in [*parts, "SottoOptions", "Message", "ChatRequest", "CompletionRequest", "NativeRequest",
                 "TokenizeRequest", "EmbeddingRequest", "LoadRequest"]:
        made["components"]["schemas"][name] = nullable(made["components"]["schemas"][name])
    made["components"]["parameters"]["ModelId"]["schema"] = {"enum": MODELS}
    for operation in operations(made):
        # Told of to callers, and never to be seen.
        del operation["responses"]["500"]
        # A run of its own is lenient.
        operation["parameters"] = [one for one in operation.get("parameters", []) if "/Prefer" not in str(one)]
        content = operation["responses"].get("200", {}).get("content", {})
        if "application/x-ndjson" in content:
            line = content["application/x-ndjson"]["schema"]
            content["application/x-ndjson"]["schema"] = {"type": "array", "minItems": 1, "items": line}
        # Streams of both kinds whatever chance brings, see `before_call`.
        if "text/event-stream" in content:
            asked = operation["requestBody"]["content"]["application/json"]
            asked["examples"] = {
                text: {"value": {"prompt": text} if operation["operationId"] == "completions" else
                       {"messages": [{"role": "user", "content": text}]}} for text in ("a", "ab")
            }
            for example in asked["examples"].values():
                example["value"]["stream"] = True
    return made


def operations(document: dict) -> list[dict]:
    """All that can be asked for."""
    return [operation for path in document["paths"].values() for operation in path.values()]


def unseen(document: dict, seen: str) -> set[str]:
    """The good answers of the document that never came, `OPERATION KIND` each."""
    told = set()
    for operation in operations(document):
        for status, answer in operation["responses"].items():
            if status.startswith("2"):
                told |= {f"{operation['operationId']} {kind}" for kind in answer.get("content", {"nothing": {}})}
    return told - set(seen.splitlines())


class Forwarder:
    """Carries bytes between a port of the loopback and a Unix socket, `was` of an answer as `becomes`."""

    def __init__(self, path: str):
        self.path = path
        self.was, self.becomes = b"", b""
        self.server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.server.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            there = self.server.accept()[0]
            here = socket.socket(socket.AF_UNIX)
            here.connect(self.path)
            threading.Thread(target=self.carry, args=(there, here, False), daemon=True).start()
            threading.Thread(target=self.carry, args=(here, there, True), daemon=True).start()

    def carry(self, source, target, answers: bool):
        try:
            while piece := source.recv(1 << 16):
                target.sendall(piece.replace(self.was, self.becomes) if answers and self.was else piece)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            # One side has gone: so has the other.
            for end in (source, target):
                end.close()


def run(url: str, folder: Path, *more: str, lenient: bool = False) -> tuple[int, str]:
    """One run of schemathesis: its exit status and what it says."""
    checks = ["server_errors_are_named", "valid_requests_are_taken", "status_code_conformance", "content_type_conformance",
              "response_headers_conformance", "response_schema_conformance", "negative_data_rejection",
              "allow_header_conformance", "kinds_are_told"]
    if lenient:
        # What the document forbids is ignored then, as far as it can be.
        checks.remove("negative_data_rejection")
        more += ("--header", "Prefer: handling=lenient")
    command = [sys.executable, "-m", "schemathesis.cli", "run", str(folder / "openapi.json"), "--url", url,
               "--checks", ",".join(checks), "--no-color", "--warnings", "off", *more]
    environment = os.environ | {"SCHEMATHESIS_HOOKS": "schema", "PYTHONPATH": str(Path(__file__).parent),
                                "PYTHONDONTWRITEBYTECODE": "1", "SOTTO_SEEN": str(folder / "seen")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def main() -> int:
    forwarder = Forwarder(sys.argv[1])
    examples = sys.argv[2] if len(sys.argv) > 2 else "100"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = document()
        (folder / "openapi.json").write_text(json.dumps(made))
        for was, becomes, operation, words in FAULTS:
            forwarder.was, forwarder.becomes = was, becomes
            found, told = run(forwarder.url, folder, "--include-operation-id", operation, "--mode", "positive",
                              "--phases", "coverage,fuzzing", "--max-examples", "20", "--no-shrink")
            if found != 1 or words not in told:
                print(f"schema: {was!r} as {becomes!r} was not found (status {found}):\n{told}")
                return 1
        print(f"schema: {len(FAULTS)} planted faults found")
        forwarder.was = b""
        found, told = run(forwarder.url, folder, "--phases", "examples,coverage,fuzzing", "--max-examples", examples,
                          "--continue-on-failure")
        print(told)
        if left := unseen(made, (folder / "seen").read_text()):
            print(f"schema: never seen: {', '.join(sorted(left))}; more EXAMPLES may do")
            return 1
        ignoring, told = run(forwarder.url, folder, "--phases", "coverage,fuzzing", "--max-examples", examples,
                             "--continue-on-failure", lenient=True)
        print(f"schema: lenient\n{told}")
        return found or ignoring


if __name__ == "__main__":
    sys.exit(main())
