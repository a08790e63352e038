from __future__ import annotations

import asyncio

import pytest

from actors import fleet as fleet_module
from actors.fleet import Fleet
from actors.scaling import ReplacementBudget, ScalingPolicy
from astrolabe_ray.errors import ConfigError, InfraFailure


class Crew:
    """Makes members "m0", "m1", ...; `broken` holds the errors of the next hires, each of which takes
    `hire_s` by the fleet's clock. A member settles when its event in `busy` is set."""

    def __init__(self, minimum: int = 1, maximum: int = 1, limit: int = 5, hire_s: float = 0.0) -> None:
        self.broken: list[Exception] = []
        self.dismissed: list[str] = []
        self.busy: dict[str, asyncio.Event] = {}
        self.now_s, self.hire_s = 0.0, hire_s
        self.fleet = Fleet(
            self.hire,
            self.dismissed.append,
            self.settle,
            scaling=ScalingPolicy(minimum, maximum),
            budget=ReplacementBudget(limit, "members"),
            clock=lambda: self.now_s,
        )

    async def hire(self, number: int) -> str:
        await asyncio.sleep(0)
        self.now_s += self.hire_s
        if self.broken:
            raise self.broken.pop(0)
        return f"m{number}"

    async def settle(self, member: str) -> None:
        await self.busy[member].wait()


async def soon(condition) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("not within 5 s")


async def test_a_member_serves_one_borrower_at_a_time() -> None:
    """Two requests sharing one KV cache."""
    crew = Crew(minimum=2)
    await crew.fleet.start()
    lent: list[str] = []
    most = 0

    async def use() -> None:
        nonlocal most
        async with crew.fleet.borrow() as member:
            assert member not in lent
            lent.append(member)
            most = max(most, len(lent))
            await asyncio.sleep(0.001)
            lent.remove(member)

    await asyncio.gather(*(use() for _ in range(20)))
    assert most == 2
    assert crew.fleet.num_idle == 2


async def test_waiters_are_served_in_the_order_they_came() -> None:
    """Starvation: the first group of a step finishing last."""
    crew = Crew()
    await crew.fleet.start()
    served: list[int] = []

    async def use(number: int) -> None:
        async with crew.fleet.borrow():
            served.append(number)
            await asyncio.sleep(0.001)

    await asyncio.gather(*(use(number) for number in range(6)))
    assert served == list(range(6))


async def test_the_patient_wait_until_nobody_else_does() -> None:
    """Held-out videos in front of the rollouts of a step would hold training up."""
    crew = Crew(minimum=2)
    await crew.fleet.start()
    served: list[str] = []

    async def use(name: str, is_patient: bool) -> None:
        async with crew.fleet.borrow(is_patient=is_patient):
            served.append(name)
            await asyncio.sleep(0.002)

    first = [asyncio.ensure_future(use(f"eval {i}", True)) for i in range(2)]
    await asyncio.sleep(0)  # they take both members, and these come behind:
    rest = [use("eval 2", True), *(use(f"train {i}", False) for i in range(4)), use("eval 3", True)]
    await asyncio.gather(*first, *rest)
    assert sorted(served[2:6]) == [f"train {i}" for i in range(4)]
    assert sorted(served[6:]) == ["eval 2", "eval 3"]


async def test_who_gives_up_leaves_its_turn_to_the_patient() -> None:
    """An evaluation would wait for ever behind a request that was cancelled."""
    crew = Crew()
    await crew.fleet.start()
    async with crew.fleet.borrow():
        urgent = asyncio.ensure_future(crew.fleet._take())
        patient = asyncio.ensure_future(crew.fleet._take(is_patient=True))
        await asyncio.sleep(0)
    urgent.cancel()
    assert await asyncio.wait_for(patient, 5) == "m0"


async def test_a_discarded_member_is_ended_once_and_replaced() -> None:
    crew = Crew()
    await crew.fleet.start()
    async with crew.fleet.borrow() as member:
        crew.fleet.discard(member, "it died")
        crew.fleet.discard(member, "it died")
    async with crew.fleet.borrow() as member:
        assert member == "m1"
    assert crew.dismissed == ["m0"]


async def test_a_replacement_that_fails_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool that stays empty because there was no room for a moment."""
    monkeypatch.setattr(fleet_module, "FIRST_BACKOFF_S", 0.01)
    crew = Crew()
    await crew.fleet.start()
    crew.broken = [ConfigError("no room"), InfraFailure("died while loading")]
    async with crew.fleet.borrow() as member:
        crew.fleet.discard(member, "it died")
    async with crew.fleet.borrow() as member:
        assert member == "m3"


async def test_all_waiters_fail_when_the_replacement_budget_is_used_up() -> None:
    """Requests that wait for ever for members that die as soon as they come."""
    crew = Crew(limit=1)
    await crew.fleet.start()

    async def use() -> None:
        async with crew.fleet.borrow() as member:
            crew.fleet.discard(member, "bad node")

    results = await asyncio.gather(*(use() for _ in range(5)), return_exceptions=True)
    assert [type(result) for result in results] == [type(None)] * 2 + [InfraFailure] * 3
    assert "bad node" in str(results[-1])


async def test_starting_raises_what_the_first_hire_raised() -> None:
    crew = Crew(minimum=2)
    crew.broken = [ConfigError("model lacks vae/config.json")]
    with pytest.raises(ConfigError, match="vae"):
        await crew.fleet.start()
    await crew.fleet.stop()
    assert crew.fleet.members == []


async def test_stopping_ends_members_that_are_still_being_hired() -> None:
    """Another role failed to start: actors that come up after the end keep their GPUs."""
    gate, dismissed = asyncio.Event(), []

    async def hire(number: int) -> str:
        if number == 1:
            raise ConfigError("no room")
        try:
            await gate.wait()
        except asyncio.CancelledError:
            dismissed.append(number)
            raise
        return f"m{number}"

    async def settle(member: str) -> None: ...

    budget = ReplacementBudget(1, "members")
    fleet = Fleet(hire, dismissed.append, settle, scaling=ScalingPolicy(3, 3), budget=budget)
    with pytest.raises(ConfigError):
        await fleet.start()
    await fleet.stop()
    gate.set()
    await asyncio.sleep(0.01)
    assert fleet.members == []
    assert sorted(dismissed) == [0, 2]


async def test_waiting_for_room_beside_members_at_work_costs_no_replacements(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One node of many goes for good: after an hour of looking for room the whole run would end."""
    monkeypatch.setattr(fleet_module, "FIRST_BACKOFF_S", 0.001)
    monkeypatch.setattr(fleet_module, "LONGEST_BACKOFF_S", 0.001)
    crew = Crew(minimum=2, limit=2)
    await crew.fleet.start()
    crew.broken = [ConfigError("no room") for _ in range(10)]
    async with crew.fleet.borrow() as member:
        crew.fleet.discard(member, "its node died")
    await soon(lambda: not crew.broken)
    await soon(lambda: len(crew.fleet.members) == 2)
    async with crew.fleet.borrow():
        pass


async def test_waiting_for_room_with_nobody_left_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that holds its learner's GPUs and waits for ever for a first actor."""
    monkeypatch.setattr(fleet_module, "FIRST_BACKOFF_S", 0.001)
    crew = Crew(limit=3)
    await crew.fleet.start()
    crew.broken = [ConfigError("no room") for _ in range(10)]
    async with crew.fleet.borrow() as member:
        crew.fleet.discard(member, "its node died")
    with pytest.raises(InfraFailure, match="the last failure was: no room"):
        async with crew.fleet.borrow():
            pass
    assert len(crew.broken) == 7


async def test_looking_for_room_with_nobody_left_ends_also_when_each_look_takes_minutes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A budget of 30 an hour never runs out when a try takes 150 s: `generate` would hang for ever."""
    monkeypatch.setattr(fleet_module, "FIRST_BACKOFF_S", 0.001)
    monkeypatch.setattr(fleet_module, "LONGEST_BACKOFF_S", 0.001)
    crew = Crew(limit=30, hire_s=150)
    await crew.fleet.start()
    crew.broken = [ConfigError("no room") for _ in range(100)]
    async with crew.fleet.borrow() as member:
        crew.fleet.discard(member, "its node died")
    with pytest.raises(InfraFailure, match=r"all members are gone, and for 1800 s .* was: no room"):
        async with crew.fleet.borrow():
            pass
    assert len(crew.broken) == 100 - 12


async def test_a_first_slow_look_for_room_may_find_some(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time in which all were at work would count as time without anybody."""
    monkeypatch.setattr(fleet_module, "FIRST_BACKOFF_S", 0.001)
    crew = Crew(hire_s=600)
    await crew.fleet.start()
    crew.now_s += 10_000
    crew.broken = [ConfigError("no room"), ConfigError("no room")]
    async with crew.fleet.borrow() as member:
        crew.fleet.discard(member, "its node died")
    async with crew.fleet.borrow() as member:
        assert member == "m3"


async def test_a_member_of_a_cancelled_borrower_is_lent_again_only_when_it_has_finished() -> None:
    """The next request would queue behind the abandoned one and exceed its own time limit."""
    crew = Crew(minimum=2)
    await crew.fleet.start()
    crew.busy = {name: asyncio.Event() for name in ("m0", "m1")}

    async def for_ever(member: str) -> None:
        await asyncio.Event().wait()

    abandoned = asyncio.ensure_future(crew.fleet.on_member(for_ever, max_attempts=1, broken=()))
    await soon(lambda: crew.fleet.num_idle == 1)
    abandoned.cancel()
    await asyncio.gather(abandoned, return_exceptions=True)
    async with crew.fleet.borrow() as other:
        (unsettled,) = {"m0", "m1"} - {other}
        waiting = asyncio.ensure_future(crew.fleet._take())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        crew.busy[unsettled].set()
        assert await asyncio.wait_for(waiting, 5) == unsettled
    assert crew.dismissed == []
    await crew.fleet.stop()


async def test_a_member_that_never_finishes_what_nobody_waits_for_is_replaced() -> None:
    """A hanging actor would be lost to the fleet for good."""
    crew = Crew()

    async def settle(member: str) -> None:
        raise InfraFailure("no answer in time")

    crew.fleet._settle = settle
    await crew.fleet.start()

    async def look() -> None:
        async with crew.fleet.borrow_idle():
            await asyncio.Event().wait()

    abandoned = asyncio.ensure_future(look())
    await soon(lambda: crew.fleet.num_idle == 0)
    abandoned.cancel()
    await soon(lambda: crew.fleet.members == ["m1"])
    assert crew.dismissed == ["m0"]
    await crew.fleet.stop()


async def test_it_grows_while_requests_wait_and_shrinks_to_busy_members(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A pool that never adapts, or that dismisses a member in the middle of its work."""
    monkeypatch.setattr(fleet_module, "SCALING_PERIOD_S", 0.01)
    monkeypatch.setattr("actors.scaling.GROW_AFTER_S", 0.03)
    monkeypatch.setattr("actors.scaling.SHRINK_AFTER_S", 0.03)
    crew = Crew(minimum=1, maximum=3)
    await crew.fleet.start()
    release = asyncio.Event()

    async def use() -> str:
        async with crew.fleet.borrow() as member:
            await release.wait()
            return member

    users = [asyncio.ensure_future(use()) for _ in range(4)]
    await soon(lambda: len(crew.fleet.members) == 3)
    release.set()
    await asyncio.gather(*users)
    async with crew.fleet.borrow() as busy:
        await soon(lambda: crew.fleet.members == [busy])
    assert len(crew.dismissed) == 2
    await crew.fleet.stop()


async def test_all_idle_members_are_lent_together_and_each_once() -> None:
    """A member that is up to date came back before the next was asked for: one was asked twice, one never."""
    crew = Crew(minimum=3)
    await crew.fleet.start()
    async with crew.fleet.borrow() as busy:
        async with crew.fleet.borrow_idle() as members:
            assert sorted([*members, busy]) == ["m0", "m1", "m2"]
            assert crew.fleet.num_idle == 0
            waiting = asyncio.ensure_future(crew.fleet._take())
            await asyncio.sleep(0)
            assert not waiting.done(), "nobody else gets them meanwhile"
            crew.fleet.discard(members[0], "broken")
        assert await asyncio.wait_for(waiting, 5) in members[1:]
    assert members[0] not in crew.fleet.members
    assert crew.dismissed == [members[0]]
    await crew.fleet.stop()


async def test_work_that_a_broken_member_failed_is_done_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead actor would take its work with it, or be lent again."""
    monkeypatch.setattr(fleet_module, "FIRST_BACKOFF_S", 0.001)
    crew = Crew()
    await crew.fleet.start()
    tried: list[str] = []

    async def work(member: str) -> str:
        tried.append(member)
        if len(tried) < 3:
            raise InfraFailure("it died")
        return f"done by {member}"

    assert await crew.fleet.on_member(work, max_attempts=3, broken=(InfraFailure,)) == "done by m2"
    assert (tried, crew.dismissed) == (["m0", "m1", "m2"], ["m0", "m1"])


async def test_work_that_no_member_can_do_raises_and_a_mistake_in_it_is_not_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A bad input would go round all members for ever and end each of them."""
    monkeypatch.setattr(fleet_module, "FIRST_BACKOFF_S", 0.001)
    crew = Crew()
    await crew.fleet.start()
    errors = [InfraFailure("it died"), InfraFailure("so did this one"), ConfigError("nobody can")]

    async def work(member: str) -> str:
        raise errors.pop(0)

    with pytest.raises(InfraFailure, match="so did this one"):
        await crew.fleet.on_member(work, max_attempts=2, broken=(InfraFailure,))
    await soon(lambda: crew.fleet.num_idle == 1)
    with pytest.raises(ConfigError, match="nobody can"):
        await crew.fleet.on_member(work, max_attempts=2, broken=(InfraFailure,))
    assert crew.dismissed == ["m0", "m1"]
    await crew.fleet.stop()
