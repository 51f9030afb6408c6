"""Speaks to a daemon by the official Python client over its Unix socket.

    openai_client.py SOCKET          to `sottod --mock tokens_per_s=200`
    openai_client.py SOCKET --real   to a model without a chat template

A step that does not hold ends the program.
"""

import json
import sys
import time

import httpx
import openai

HI = [{"role": "user", "content": "Grüße"}]


def transport(path: str) -> httpx.Client:
    return httpx.Client(transport=httpx.HTTPTransport(uds=path), timeout=60)


def client(path: str) -> openai.OpenAI:
    return openai.OpenAI(base_url="http://sotto/v1", api_key="none", http_client=transport(path), max_retries=0)


def status(path: str) -> dict:
    with transport(path) as http:
        return http.get("http://sotto/sotto/v1/status").json()


def until_idle(path: str):
    """The daemon says that nothing of this caller is under way any more."""
    until = time.monotonic() + 5
    while status(path)["generations"]:
        assert time.monotonic() < until, "a generation goes on after its stream was closed"
        time.sleep(0.01)


def refused(kind: type, code: str, call):
    """`call` raises the client's class `kind`, whose body names `code`."""
    try:
        call()
    except openai.APIStatusError as error:
        assert type(error) is kind and error.code == code, f"{type(error).__name__} {error}"
        assert error.request_id, "no X-Request-Id"
        return
    raise AssertionError(f"no {kind.__name__}")


def chat(sotto: openai.OpenAI):
    answer = sotto.chat.completions.create(model="mock", messages=HI)
    assert answer.choices[0].message.content == "Grüße" and answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens + answer.usage.completion_tokens == answer.usage.total_tokens
    assert answer.system_fingerprint, "no system_fingerprint"
    # What came back is sent back as it stands, as an object and as what the client makes of it.
    said = answer.choices[0].message
    for again in (said, said.model_dump(), {"role": "assistant", "content": None}):
        more = sotto.chat.completions.create(model="mock", messages=[*HI, again, {"role": "user", "content": "two"}])
        assert more.choices[0].message.content == "two"


def stream(sotto: openai.OpenAI):
    chunks = list(sotto.chat.completions.create(
        model="mock", messages=HI, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "Grüße" and chunks[0].choices[0].delta.role == "assistant"
    assert [c.usage is not None for c in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].usage.completion_tokens == 7 and chunks[-2].choices[0].finish_reason == "stop"
    with sotto.chat.completions.stream(model="mock", messages=HI) as events:
        assert events.get_final_completion().choices[0].message.content == "Grüße"


def cancel(sotto: openai.OpenAI, path: str):
    answer = sotto.chat.completions.create(model="mock-endless", messages=HI, stream=True)
    for chunk in answer:
        if chunk.choices[0].delta.content:
            break
    under_way = [one["id"] for one in status(path)["generations"]]
    assert under_way == [chunk.id], under_way
    answer.close()
    until_idle(path)


def likelihoods(sotto: openai.OpenAI):
    answer = sotto.chat.completions.create(model="mock", messages=HI, logprobs=True, top_logprobs=2)
    told = answer.choices[0].logprobs.content
    # The end of the answer is a token too.
    assert bytes(b for one in told for b in one.bytes).startswith("Grüße".encode())
    assert all(len(one.top_logprobs) == 2 and one.top_logprobs[0].logprob >= one.top_logprobs[1].logprob for one in told)


def several(sotto: openai.OpenAI):
    answer = sotto.chat.completions.create(model="mock", messages=HI, n=2)
    assert [(c.index, c.message.content) for c in answer.choices] == [(0, "Grüße"), (1, "Grüße")]
    # Each of the seven bytes and of the two ends, once for each choice; the prompt once for both.
    alone = sotto.chat.completions.create(model="mock", messages=HI)
    assert answer.usage.completion_tokens == 2 * alone.usage.completion_tokens
    assert answer.usage.prompt_tokens == alone.usage.prompt_tokens
    texts, ends = ["", ""], []
    for chunk in sotto.chat.completions.create(model="mock", messages=HI, n=2, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            ends += [choice.index] if choice.finish_reason else []
    assert texts == ["Grüße"] * 2 and sorted(ends) == [0, 1]


def models(sotto: openai.OpenAI):
    assert {"mock", "mock-endless"} <= {model.id for model in sotto.models.list()}
    assert sotto.models.retrieve("default").id == "mock"


def vectors(sotto: openai.OpenAI):
    # The client asks for base64 by itself and makes numbers of it.
    texts = ["the cat sat", "the cat sat down", "1234567890"]
    one, near, far = (item.embedding for item in sotto.embeddings.create(model="embed", input=texts).data)
    plain = sotto.embeddings.create(model="embed", input=texts[0], encoding_format="float").data[0].embedding
    assert max(abs(a - b) for a, b in zip(one, plain)) < 1e-6

    def dot(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True))

    assert abs(dot(one, one) - 1) < 1e-5 and dot(one, near) > dot(one, far)
    short = sotto.embeddings.create(model="embed", input=texts[0], dimensions=4)
    assert len(short.data[0].embedding) == 4 and short.usage.total_tokens == len(texts[0])
    refused(openai.BadRequestError, "invalid_value",
            lambda: sotto.embeddings.create(model="embed", input=texts, dimensions=4000))


def failures(sotto: openai.OpenAI):
    def ask(model="mock", **more):
        return lambda: sotto.chat.completions.create(model=model, messages=HI, **more)

    refused(openai.NotFoundError, "unknown_model", ask("gpt-5"))
    refused(openai.BadRequestError, "invalid_value", ask(temperature=3))
    refused(openai.BadRequestError, "unknown_field", ask(extra_body={"wat": 1}))
    refused(openai.BadRequestError, "unsupported_field", ask(tools=[{"type": "function", "function": {"name": "f"}}]))
    refused(openai.PermissionDeniedError, "not_authorized", ask("mock-not_authorized"))
    refused(openai.ConflictError, "model_busy", ask("mock-model_busy"))
    refused(openai.RateLimitError, "rate_limited", ask("mock-rate_limited"))
    refused(openai.RateLimitError, "queue_full", ask("mock-queue_full", n=2))
    refused(openai.InternalServerError, "load_failed", ask("mock-load_failed", stream=True))
    # After the first byte the failure is an event of the stream.
    try:
        for _ in ask("mock-stalled", stream=True)():
            pass
        raise AssertionError("a stream that fails raises nothing")
    except openai.APIError as error:
        assert error.code == "stalled", error


def retries(path: str):
    """The client tries a busy daemon again by itself, after the time that the answer names."""
    sotto = client(path).with_options(max_retries=2)
    began = time.monotonic()
    refused(openai.RateLimitError, "queue_full",
            lambda: sotto.chat.completions.create(model="mock-queue_full", messages=HI))
    assert time.monotonic() - began >= 2, "Retry-After is not kept"


def real(sotto: openai.OpenAI, path: str):
    """What holds of any model, by completions."""
    model = next(iter(sotto.models.list())).id
    ask = {"model": model, "prompt": "Once upon a time", "max_tokens": 12, "seed": 7, "temperature": 1}
    whole = sotto.completions.create(**ask, n=2, logprobs=2)
    assert [c.index for c in whole.choices] == [0, 1] and whole.usage.completion_tokens <= 24
    for i, choice in enumerate(whole.choices):
        alone = sotto.completions.create(**ask | {"seed": 7 + i})
        assert alone.choices[0].text == choice.text, "a choice differs from the same request alone"
        assert len(choice.logprobs.tokens) == len(choice.logprobs.token_logprobs) <= 13
    texts = ["", ""]
    for chunk in sotto.completions.create(**ask, n=2, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]
    answer = sotto.completions.create(**ask | {"max_tokens": 400}, stream=True)
    next(iter(answer))
    answer.close()
    until_idle(path)
    refused(openai.BadRequestError, "context_too_long",
            lambda: sotto.completions.create(model=model, prompt="and so on " * 5000))


def main():
    path, sotto = sys.argv[1], client(sys.argv[1])
    if "--real" in sys.argv:
        steps = [(real, sotto, path)]
    else:
        steps = [(chat, sotto), (stream, sotto), (cancel, sotto, path), (likelihoods, sotto), (several, sotto),
                 (models, sotto), (vectors, sotto), (failures, sotto), (retries, path)]
    for step, *given in steps:
        step(*given)
        print(f"openai {openai.__version__}: {step.__name__}: ok")
    assert json.dumps(status(path)["generations"]) == "[]"


if __name__ == "__main__":
    main()
