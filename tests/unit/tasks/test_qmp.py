"""The QMP client: questions, events, and every way in which a monitor can be bad."""

from __future__ import annotations

import os

import pytest
import trio
import trio.testing

from tests.support.fake_qmp import Client, fake_qmp
from vgpud.tasks.qmp import GREETING, MAX_MESSAGE, Qmp, QmpDown, QmpError


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "qmp")


@pytest.fixture
async def server(path):
    async with fake_qmp(path) as server:
        yield server


@pytest.fixture
def events():
    return []


@pytest.fixture
def qmp(path, events):
    return Qmp(path, lambda name, data: events.append((name, data)))


@pytest.fixture
async def running(qmp, server, nursery):
    """A client that keeps itself connected."""
    nursery.start_soon(qmp.run)
    return qmp


def reasons(caplog):
    return [r.getMessage() for r in caplog.records if "qmp-down" in r.getMessage()]


async def test_an_answer(running, server):
    server.answers["query-status"] = {"status": "running"}
    assert await running.execute("query-status") == {"status": "running"}
    assert running.pid == os.getpid()


async def test_arguments_have_dashes(running, server):
    server.answers["x"] = lambda **arguments: arguments
    assert await running.execute("x", a_b=1, path="/p") == {"a-b": 1, "path": "/p"}


async def test_a_refusal(running):
    with pytest.raises(QmpError, match="x: The command x has not been found"):
        await running.execute("x")


async def test_answers_in_another_order(qmp, server, nursery):
    """Each question gets its own, told by id."""
    got = {}

    async def script(client: Client) -> None:
        await client.greet()
        first, second = await client.receive(), await client.receive()
        for message in (second, first):
            await client.send({"return": message["execute"], "id": message["id"]})
        await trio.sleep_forever()

    async def ask(name):
        got[name] = await qmp.execute(name)

    server.script = script
    nursery.start_soon(qmp.run)
    async with trio.open_nursery() as both:
        both.start_soon(ask, "a")
        both.start_soon(ask, "b")
    assert got == {"a": "a", "b": "b"}


async def test_events_between_answers(running, server, events):
    server.answers["x"] = {}
    await running.execute("x")
    await server.event("RESET", guest=True, reason="guest-reset")
    await server.event("DEVICE_DELETED", device="hostdev0", path="/machine/peripheral/hostdev0")
    await running.execute("x")
    assert [name for name, _ in events] == ["RESET", "DEVICE_DELETED"]
    assert events[1][1]["device"] == "hostdev0"


async def test_a_late_answer_is_nobodys(running, server):
    """Who asked has given up; the next question gets its own answer."""
    server.mute = True
    with trio.move_on_after(0.01) as limit:
        await running.execute("slow")
    assert limit.cancelled_caught
    server.mute = False
    server.answers["x"] = 7
    await server._client.send({"return": 1, "id": 1})
    assert await running.execute("x") == 7


async def test_it_reconnects(running, server, autojump_clock):
    server.answers["x"] = 1
    assert await running.execute("x") == 1
    server.hang_up()
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert await running.execute("x") == 1
    assert server.clients == 2


async def test_the_end_answers_what_is_open(running, server, nursery, autojump_clock):
    server.mute = True

    async def later() -> None:
        while not server.asked:
            await trio.lowlevel.checkpoint()
        server.hang_up()

    nursery.start_soon(later)
    with pytest.raises(QmpDown):
        await running.execute("x")


async def test_nobody_listens(qmp, nursery, caplog, autojump_clock):
    """Tried again and again, said once."""
    nursery.start_soon(qmp.run)
    with trio.move_on_after(20) as limit:
        await qmp.execute("x")
    assert limit.cancelled_caught
    (line,) = reasons(caplog)
    assert "No such file" in line
    assert "-qmp unix:PATH,server=on" in line


async def test_asked_before_qemu_listens(qmp, path, nursery):
    """A daemon is often started first: the question brings the connection about."""
    nursery.start_soon(qmp.run)
    await trio.testing.wait_all_tasks_blocked()
    async with fake_qmp(path) as server:
        server.answers["x"] = 1
        assert await qmp.execute("x") == 1


async def silence(client: Client) -> None:
    await trio.sleep_forever()


async def garbage(client: Client) -> None:
    await client.stream.send_all(b"\xff\xfe HTTP/1.1 200\n")
    await trio.sleep_forever()


async def no_object(client: Client) -> None:
    await client.stream.send_all(b"[1]\n")
    await trio.sleep_forever()


async def deep(client: Client) -> None:
    await client.stream.send_all(b"[" * 200_000 + b"\n")
    await trio.sleep_forever()


async def another_greeting(client: Client) -> None:
    await client.send({"hello": 1})
    await trio.sleep_forever()


async def refusal(client: Client) -> None:
    await client.send({"QMP": {}})
    await client.receive()
    await client.send({"error": {"desc": "no"}, "id": 0})
    await trio.sleep_forever()


async def half(client: Client) -> None:
    await client.stream.send_all(b'{"QMP": {"ver')


async def ten_megabytes(client: Client) -> None:
    await client.stream.send_all(b'{"QMP": "' + b"x" * 10_000_000)
    await trio.sleep_forever()


async def ten_megabytes_later(client: Client) -> None:
    await client.greet()
    await client.stream.send_all(b'{"event": "' + b"x" * 10_000_000)
    await trio.sleep_forever()


async def end(client: Client) -> None:
    pass


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (silence, f"no greeting in {GREETING:g} s: it serves another client"),
        (garbage, "no JSON object"),
        (no_object, "no JSON object"),
        (deep, "no JSON object"),
        (another_greeting, "no QMP greeting"),
        (refusal, "qmp_capabilities was refused"),
        (half, "in the middle of a message"),
        (ten_megabytes, f"more than {MAX_MESSAGE} bytes"),
        (ten_megabytes_later, f"more than {MAX_MESSAGE} bytes"),
        (end, "QEMU closed it"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_a_bad_monitor(qmp, nursery, server, caplog, autojump_clock, script, reason):
    """One line says what is wrong, the bad connection is left, and a good one is used later."""
    server.script = script
    nursery.start_soon(qmp.run)
    await trio.sleep(30)
    assert server.clients > 2
    lines = reasons(caplog)
    assert any(reason in line for line in lines), lines
    assert len(lines) == 1
    server.script = None
    server.answers["x"] = 1
    assert await qmp.execute("x") == 1


async def test_answers_that_nobody_asked_for(qmp, nursery, server, events):
    """Ids of another type, errors without a text, an event without data."""

    async def script(client: Client) -> None:
        await client.greet()
        for message in (
            {"return": 1, "id": 99},
            {"return": 1, "id": [1]},
            {"return": 1},
            {"event": "E", "data": 3},
            {"event": 5},
        ):
            await client.send(message)
        message = await client.receive()
        await client.send({"error": "plain", "id": message["id"]})
        await trio.sleep_forever()

    server.script = script
    nursery.start_soon(qmp.run)
    with pytest.raises(QmpError, match="x: plain"):
        await qmp.execute("x")
    assert events == [("E", {}), ("5", {})]


async def test_it_ends_as_soon_as_it_is_up(qmp, nursery, server, autojump_clock):
    """Greeting, capabilities and end may come before whoever waits for a connection runs."""
    server.script = Client.greet
    nursery.start_soon(qmp.run)
    for _ in range(40):
        with pytest.raises(QmpDown):
            await qmp.execute("x")


async def test_each_connection_is_told_of(path, server, nursery, autojump_clock):
    """Before anything is asked in it: what was known may be wrong by then."""
    up = []
    qmp = Qmp(path, lambda name, data: None, lambda: up.append(server.asked[:]))
    server.answers["x"] = 1
    nursery.start_soon(qmp.run)
    await qmp.execute("x")
    server.hang_up()
    await trio.testing.wait_all_tasks_blocked(0.01)
    await qmp.execute("x")
    assert up == [[], ["x"]]
