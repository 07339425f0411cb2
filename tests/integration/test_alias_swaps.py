"""An alias moves to and fro under load; nobody notices, and no answer mixes two versions."""

import asyncio

import openai
from support.stack import RunningStack

SWAPS = 20
STREAMS = 8
ASK = [{"role": "user", "content": "Tell me about my parcel, please."}]


async def one_answer(client: openai.AsyncOpenAI, model: str) -> tuple[set[str], str]:
    """The model names of all chunks of a stream, and its text."""
    names, text = set(), []
    stream = await client.chat.completions.create(
        model=model, messages=ASK, max_tokens=24, temperature=0, stream=True
    )
    async for chunk in stream:
        names.add(chunk.model)
        text.append(chunk.choices[0].delta.content or "")
    return names, "".join(text)


async def test_swaps_under_streams(stack: RunningStack) -> None:
    versions = [stack.add("swapped", seed=seed, scale=4.0) for seed in (21, 22)]
    for version in versions:
        stack.load(version.ref)
    async with openai.AsyncOpenAI(
        base_url=f"{stack.url}/v1", api_key="none", max_retries=0, timeout=60
    ) as client:
        expected = {str(version.ref): (await one_answer(client, str(version.ref)))[1] for version in versions}
        assert len(set(expected.values())) == len(versions), "the two versions must answer differently"
        stack.point("swapped", versions[0].ref)
        done, answers = asyncio.Event(), []

        async def ask_on() -> None:
            while not done.is_set():
                answers.append(await one_answer(client, "swapped"))

        streams = [asyncio.create_task(ask_on()) for _ in range(STREAMS)]
        for turn in range(SWAPS):
            stack.registry.set_alias("swapped", versions[(turn + 1) % 2].ref, forced=True, by="test")
            await asyncio.sleep(0.25)
        done.set()
        await asyncio.gather(*streams)
    assert {name for names, _ in answers for name in names} == set(expected)
    for names, text in answers:
        assert len(names) == 1
        assert text == expected[next(iter(names))]
