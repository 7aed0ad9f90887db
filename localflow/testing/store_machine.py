"""A state store against a plain model of one, driven by hypothesis; imported only where that is installed."""

from __future__ import annotations

import uuid
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from localflow.capabilities import find_capability
from localflow.errors import StoreError
from localflow.interfaces import CacheEntry, FlowRun, Payload, StateChange, StateType, TaskRun
from localflow.testing.store_model import StoreModel
from localflow.testing.store_records import make_completed, make_flow_run, make_log_entry, make_running, make_task_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from localflow.interfaces import Claim, Record, StateStore

STEPS = 20
KEYS = ("hourly", "daily")
NOW = 1_700_000_000.0

places = st.integers(0, 20)
texts = st.text(st.characters() | st.sampled_from("\n$\udc00\x00"), max_size=20)
#: What is recorded, by how often: task runs and their changes most, for stores keep those in more ways than others.
WEIGHTS = {
    "flow run": 1,
    "subflow": 1,
    "flow run again": 1,
    "task run": 2,
    "task run again": 1,
    "running": 2,
    "completed": 2,
    "cached": 1,
    "ended": 1,
    "log": 2,
}
kinds = st.sampled_from([kind for kind, weight in WEIGHTS.items() for _ in range(weight)])
steps = st.lists(st.tuples(kinds, places, texts), min_size=1, max_size=5)


class StoreMachine(RuleBasedStateMachine):
    """Does the same with a store and with the model, and looks after each step whether they still agree.

    All examples share one store, for it is up to `make_store` where that is: each has runs and keys of its own, and
    looks at nothing else.
    """

    make_store: Callable[[], StateStore]
    #: Of everything that any example has made: what is recorded later is created later.
    numbers: ClassVar[Iterator[int]] = count(1)

    def __init__(self) -> None:
        super().__init__()
        self.mark = uuid.uuid4().hex[:12]
        self.model = StoreModel()
        self.store = self.make_store()
        self.claims: dict[str, Claim] = {}
        self.removed: list[FlowRun] = []

    @rule(steps=steps)
    def append(self, steps: list[tuple[str, int, str]]) -> None:
        """Append a batch."""
        batch: list[Record] = []
        for kind, place, text in steps:
            record = self._made(kind, place, text)
            if record is not None:
                self.model.append([record])
                batch.append(record)

        self.store.append(batch)

    @precondition(lambda self: self.model.flow_runs)
    @rule(place=places, reason=st.sampled_from(["unrecorded", "removed", "sequence", "stranger"]))
    def refuse(self, place: int, reason: str) -> None:
        """Append a batch in which one record cannot be added."""
        run = self._any_run(place)
        wrong: Any = "not a record"
        if reason == "unrecorded":
            wrong = make_running(make_task_run(make_flow_run()))
        elif reason == "removed" and self.removed:
            wrong = make_log_entry(self.removed[place % len(self.removed)])
        elif reason == "sequence" and self.model.changes:
            wrong = self.model.changes[place % len(self.model.changes)]
        batch = [make_log_entry(run, "never"), make_running(run, self.model.sequence(run) + 1), wrong]

        with pytest.raises(StoreError):
            self.store.append(batch)

    @rule(place=places)
    def claim(self, place: int) -> None:
        """Claim a flow run that may be claimed already, recorded or not."""
        names = [*dict.fromkeys(run.root_id for run in self.model.flow_runs.values()), f"{self.mark}-unrecorded"]
        name = names[place % len(names)]
        claim = self.store.claim(name)

        assert (claim is None) == (name in self.claims)
        if claim is not None:
            self.claims[name] = claim

    @precondition(lambda self: self.claims)
    @rule(place=places)
    def release(self, place: int) -> None:
        """Release a claim, twice; its flow run may have been removed meanwhile."""
        claim = self.claims.pop([*self.claims][place % len(self.claims)])

        claim.release()
        claim.release()

    @precondition(lambda self: bool(self.model.flow_runs and _removes(self.store)))
    @rule(place=places, results_only=st.booleans())
    def remove(self, place: int, results_only: bool) -> None:
        """Remove a tree, or only its results."""
        roots = sorted({run.root_id for run in self.model.flow_runs.values()})
        root_id = roots[place % len(roots)]
        if not results_only:
            self.removed += [run for run in self.model.flow_runs.values() if run.root_id == root_id]

        self.store.remove([root_id], results_only=results_only)
        self.model.remove(root_id, results_only=results_only)

    @precondition(lambda self: self.store.survives)
    @rule(closes=st.booleans())
    def reopen(self, closes: bool) -> None:
        """Go on with another opening; the one before is closed first or afterwards."""
        self._release_all()
        before = self.store
        if closes:
            before.close()
        self.store = self.make_store()
        if not closes:
            self.agree()
            before.close()

    @invariant()
    def agree(self) -> None:
        """Everything that can be read is what the model says."""
        store, model = self.store, self.model
        ids = list(model.flow_runs)[::-1]
        listed = [each for each in store.list_flow_runs() if self._is_own(each.flow_run)]
        assert [each.flow_run for each in listed] == [model.flow_runs[id] for id in ids]
        assert [each.change for each in listed] == [model.newest_change(id) for id in ids]
        assert [each.flow_run.id for each in store.list_flow_runs(2)][: len(ids)] == ids[:2]
        unfinished = [each.flow_run for each in store.list_flow_runs(unfinished=True) if self._is_own(each.flow_run)]
        assert unfinished == model.unfinished()
        for id in ids:
            self._agree_on(id)
        for flow_run in self.removed:
            assert list(store.read(flow_run.id)) == []
            assert list(store.read_logs(flow_run.id)) == []
        for key in KEYS:
            for now in (NOW, NOW + 15.0, NOW + 1e6):
                assert store.find_cached(self._key(key), now) == model.cached(self._key(key), now)

    def teardown(self) -> None:
        """Close what is open."""
        self._release_all()
        self.store.close()

    def _agree_on(self, id: str) -> None:
        store, model = self.store, self.model
        numbers = model.numbers(id)
        records = list(store.read(id))
        changes = [record for record in records if isinstance(record, StateChange)]
        assert records[: len(numbers)] == [model.run(id, number) for number in numbers]
        assert len(records) == len(numbers) + len(changes)
        for number in numbers:
            assert [change for change in changes if change.run.number == number] == model.changes_of(id, number)
            assert store.load_result(id, number) == model.result(id, number)
        first = [run for run in records[: len(numbers)] if isinstance(run, TaskRun) and run.number == 1]
        chosen = [*first, *(change for change in changes if change.run.number == 1)]
        assert list(store.read_chosen(id, [1])) == chosen
        log = model.log_of(id)
        assert list(store.read_logs(id)) == log
        assert list(store.read_logs(id, 1)) == log[1:]

    def _made(self, kind: str, place: int, text: str) -> Record | None:
        """Make a record; None if there is nothing yet that it could be of."""
        made = next(self.numbers)
        flow_runs = list(self.model.flow_runs.values())
        if kind == "flow run" or not flow_runs:
            return make_flow_run(id=f"{self.mark}-{made}", name=text, created_at=NOW + made)
        flow_run = flow_runs[place % len(flow_runs)]
        if kind == "subflow":
            parents = {"root_id": flow_run.root_id, "parent_id": flow_run.id}
            return make_flow_run(id=f"{self.mark}-{made}", name=text, created_at=NOW + made, **parents)
        if kind == "flow run again":
            return flow_run._replace(pid=made, host=text)
        if kind == "task run":
            number = self.model.numbers(flow_run.id)[-1] + 1 + place % 2
            return make_task_run(flow_run, number, name=text, tags=(text,))
        run = self._any_run(place)
        if kind == "task run again":
            return run._replace(version=text, created_at=NOW + made) if isinstance(run, TaskRun) else None
        sequence = self.model.sequence(run) + 1
        result = Payload("json", b"%d" % made)
        if kind == "log":
            return make_log_entry(run, text, timestamp=NOW + place)
        if kind == "running":
            return make_running(run, sequence, message=text)
        if kind == "completed":
            return make_completed(run, sequence, message=text, result=result if place % 3 else None)
        if kind == "ended":
            return make_completed(run, sequence, type=StateType.FAILED, name="Failed", message=text, result=None)
        if not isinstance(run, TaskRun):
            return None
        entry = CacheEntry(self._key(KEYS[place % 2]), None if place % 3 else NOW + place)
        return make_completed(run, sequence, result=result, cache=entry)

    def _any_run(self, place: int) -> FlowRun | TaskRun:
        runs = self.model.runs()
        return runs[place % len(runs)]

    def _is_own(self, flow_run: FlowRun) -> bool:
        return flow_run.id.startswith(self.mark)

    def _key(self, name: str) -> str:
        return f"{self.mark} {name}"

    def _release_all(self) -> None:
        for claim in self.claims.values():
            claim.release()
        self.claims.clear()


def _removes(store: StateStore) -> bool:
    return bool(find_capability("state store", "remove").is_promised(store))


def check_against_model(make_store: Callable[[], StateStore], examples: int = 10, steps: int = STEPS) -> None:
    """Drive a store and the model through so many examples of so many steps; raises what hypothesis has found."""
    machine = type("StoreMachine", (StoreMachine,), {"make_store": staticmethod(make_store)})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            phases=(Phase.generate, Phase.shrink),
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
