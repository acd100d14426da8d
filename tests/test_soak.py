"""A short version of `make soak`: agents restart under calls, and what is told of them is true."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest

from bench.inuse import read
from bench.restless import PATHS, restless_fleet
from bench.soak import Soak
from bench.trend import Trend, grown
from bench.truth import Judgement, Register
from support.wire import PATIENCE_SECONDS

CALLS = 30
RESTARTS = 3

PATIENT = [
    word
    for name in ("node-deadline", "call-deadline", "probe-timeout", "stream-timeout", "head-start")
    for word in (f"--{name}-seconds", str(PATIENCE_SECONDS))
]
"""What a busy machine takes is not the question."""


@pytest.mark.skipif("sys.platform != 'linux'", reason="reads /proc")
async def test_restarting_agents(tmp_path: Path) -> None:
    with anyio.fail_after(9 * PATIENCE_SECONDS):
        async with (
            restless_fleet(
                tmp_path, *PATIENT, settle_seconds=PATIENCE_SECONDS, look_seconds=1, steady=False
            ) as fleet,
            httpx2.AsyncClient(trust_env=False, timeout=PATIENCE_SECONDS) as client,
        ):
            soak = Soak(fleet)
            names = [place.name for place in fleet.places]
            await soak.ask(client, names, 1)
            assert soak.seen.ways.keys() == set(PATHS)

            def over() -> bool:
                return soak.seen.calls >= CALLS and soak.restarts.total() >= RESTARTS

            await soak.run(over, pause_seconds=1.0)
            while not all(place.life and place.life.heard for place in fleet.places):
                await soak.ask(client, names, 1)
            assert (soak.seen.wrong, soak.seen.unexplained) == ([], [])
            assert soak.restarts.keys() == {"end", "kill", "replace"}
            assert soak.holdings["gateway"].files
            while not (looks := read(fleet.in_use)):
                await anyio.sleep(0.01)
            assert looks[0].blocks > 100_000
            assert looks[0].heap_bytes > 1 << 20
            assert await fleet.gateway.end() == 0
            while fleet.relays():
                await anyio.sleep(0.01)
            assert not [log for log in fleet.logs() if "Traceback" in log.read_text()]


GPUS = {"a": ("GPU-1", "GPU-2"), "b": ("GPU-3", "GPU-4")}


def told() -> dict[str, Any]:
    """Two nodes, as a gateway tells them."""
    return {
        "simulated": True,
        "coverage": {"nodes_known": 2, "nodes_asked": 2, "nodes_answered": 2},
        "ways": {"http": 1, "exec": 1},
        "nodes_omitted": 0,
        "failures": [],
        "failures_omitted": 0,
        "failures_by_reason": {},
        "totals": {"gpus": 4},
        "nodes": [
            {
                "node": name,
                "via": via,
                "state": "ok",
                "message": None,
                "simulated": True,
                "gpus": [{"uuid": uuid} for uuid in GPUS[name]],
            }
            for name, via in (("a", "http"), ("b", "exec"))
        ],
    }


def failing() -> dict[str, Any]:
    """The same, and b does not answer."""
    answer = told()
    answer["nodes"].pop()
    answer["failures"] = [{"node": "b", "reason": "timeout", "message": "no answer"}]
    answer["failures_by_reason"] = {"timeout": 1}
    answer["coverage"]["nodes_answered"] = 1
    answer["ways"] = {"http": 1}
    answer["totals"]["gpus"] = 2
    return answer


@pytest.fixture
def register() -> Register:
    """Agents that are there from now on."""
    register = Register({"a": ("http", "exec"), "b": ("exec",)}, settle_seconds=8.0)
    for name, uuids in GPUS.items():
        life = register.begin(name, uuids)
        life.ready = life.begun
    return register


def judged(register: Register, answer: dict[str, Any], since: float = 0.0) -> Judgement:
    """Of a call from now on, or that many seconds later."""
    begun = register.lives[0].begun + 100 + since
    return register.judge(answer, ["a", "b"], begun, begun + 1)


def test_what_is_true_is_not_called_wrong(register: Register) -> None:
    found = judged(register, told())
    assert (found.wrong, found.failures, found.ways) == ([], [], {"a": "http", "b": "exec"})
    assert [life.heard for life in register.lives] == [1, 1]


def _swap(answer: dict[str, Any]) -> None:
    a, b = answer["nodes"]
    a["gpus"], b["gpus"] = b["gpus"], a["gpus"]


Spoil = Callable[[dict[str, Any]], Any]

SPOILT: dict[str, tuple[Spoil, str]] = {
    "another node's GPUs": (_swap, "a has the GPUs of b"),
    "a GPU missing": (lambda told: told["nodes"][0]["gpus"].pop(), "not all of its own"),
    "a path that is cut": (lambda told: told["nodes"][1].update(via="http"), "which is cut"),
    "a node missing": (lambda told: told["nodes"].pop(), "nodes: "),
    "a node twice": (lambda told: told["nodes"].append(told["nodes"][0]), "nodes: "),
    "a count": (lambda told: told["coverage"].update(nodes_answered=1), "nodes_answered: 1"),
    "fewer known": (lambda told: told["coverage"].update(nodes_known=1), "nodes_known: 1"),
    "a total": (lambda told: told["totals"].update(gpus=3), "totals: 3"),
    "called real": (lambda told: told["nodes"][0].update(simulated=False), "called simulated"),
    "left out": (lambda told: told.update(nodes_omitted=1), "left out"),
}


@pytest.mark.parametrize(("spoil", "words"), SPOILT.values(), ids=SPOILT)
def test_what_is_not_true_is_told(register: Register, spoil: Spoil, words: str) -> None:
    answer = copy.deepcopy(told())
    spoil(answer)
    assert any(words in each for each in judged(register, answer).wrong)


def test_an_agent_that_has_ended_cannot_answer(register: Register) -> None:
    gone = register.lives[1]
    gone.ending = gone.ended = gone.begun + 50
    assert judged(register, told()).wrong == ["b has the GPUs of an agent that was not there"]
    gone.ended = gone.begun + 100.5  # in the middle of the call
    assert judged(register, told()).wrong == []


def test_a_failure_is_explained_by_a_restart_alone(register: Register) -> None:
    def explained(since: float) -> list[bool]:
        return [each.explained for each in judged(register, failing(), since).failures]

    assert judged(register, failing()).wrong == []
    assert explained(0) == [False]
    old = register.lives[1]
    old.ending = old.begun + 105
    assert explained(0) == [False]  # ended before
    assert explained(4.5) == explained(1000) == [True]
    successor = register.begin("b", ("GPU-5", "GPU-6"))
    assert explained(1000) == [True]
    successor.ready = old.begun + 110
    assert explained(17) == [True]
    assert explained(19) == [False]


def test_a_state_that_is_not_ok_is_a_failure(register: Register) -> None:
    answer = told()
    answer["nodes"][1]["state"] = "starting"
    (failure,) = judged(register, answer).failures
    assert (failure.node, failure.explained) == ("b", False)


def test_agents_that_are_never_heard_are_told(register: Register) -> None:
    for life in register.lives:
        life.ending = life.begun + 20
    register.lives[0].heard = 1
    (begun, *_) = (life.begun for life in register.lives)
    assert register.unheard(begun) == [register.lives[1]]
    assert register.unheard(begun + 15) == []


def test_growth_is_told_from_noise() -> None:
    times = [float(number) for number in range(200)]
    noise = [float((number * 7919) % 13) for number in range(200)]
    still = Trend.of(times, noise)
    assert abs(still.slope) < 2 * still.error
    leak = Trend.of(times, [each + at for each, at in zip(noise, times, strict=True)])
    assert leak.slope - 2 * leak.error > 0.9
    level = Trend.of(times, [5.0] * 200)
    assert (level.slope, level.error) == (0.0, 0.0)
    # Steps are alike for long: few of them are no growth.
    step = Trend.of(times, [0.0] * 90 + [8.0] * 20 + [0.0] * 90)
    alone = Trend.of(times, [8.0 * (number % 10 == 0) for number in range(200)])
    assert step.error > 3 * alone.error


def test_counts_that_grow() -> None:
    assert grown([1, 50, 3, 7, 8, 7, 7, 8, 9]) == 1
    assert grown([4, 4, 4, 4, 4, 4]) == 0
