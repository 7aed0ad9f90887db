"""Which flow runs may go, and what [retention] may say of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from localflow.config import Settings, config_error, load_settings
from localflow.project import Project
from localflow.records import FlowRun, FlowRunSummary, StateChange
from localflow.retention import Rule, parse_age, unknown_states
from localflow.states import StateType

NOW = 1_000_000.0
DAY = 86_400.0


def run(name: str, age: float = 0.0, state: str = "Completed", type: str = "", **fields: object) -> FlowRunSummary:
    """Return a flow run that ended `age` seconds ago."""
    flow_run = FlowRun(name, name, "main", NOW - age - 10, fields.pop("root_id", name), **fields)
    change = StateChange(flow_run, 1, StateType((type or state).upper()), state, "", NOW - age)
    return FlowRunSummary(flow_run, change, NOW - age - 5, NOW - age)


def names(chosen: list[FlowRunSummary]) -> list[str]:
    """Return what was chosen by name."""
    return [summary.flow_run.name for summary in chosen]


def settings_of(text: str, environ: dict[str, str] | None = None) -> tuple[Settings, list[str]]:
    """Return the settings of a localflow.toml and what is wrong with them."""
    Path("localflow.toml").write_text(text)
    settings, problems = load_settings(None, None, environ or {})
    return settings, list(config_error(problems).problems)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("15m", 900), ("12h", 43_200), ("30d", 30 * DAY), ("1.5h", 5_400), (" 3 d ", DAY * 3)],
)  # fmt: skip
def test_ages_have_units(text: str, seconds: float) -> None:
    """A number and one letter say how long."""
    assert parse_age(text) == seconds


@pytest.mark.parametrize("value", ["", "30", "d", "-1d", "0d", "1y", "1d2h", "1e3s", 30, None, True, "9" * 20 + "s"])
def test_anything_else_is_no_age(value: object) -> None:
    """Nothing is guessed: neither a bare number nor two units."""
    assert parse_age(value) is None


def test_runs_go_when_they_ended_long_enough_ago() -> None:
    """The end counts, not the beginning, and the oldest comes first."""
    runs = [run("young", DAY / 2), run("old", 2 * DAY), run("older", 3 * DAY)]

    assert names(Rule(older_than=DAY).select(runs, NOW)) == ["older", "old"]


def test_run_that_has_not_ended_counts_from_its_beginning() -> None:
    """What was killed has no end, and is as old as its start, or its record."""
    begun = run("begun", state="Running")._replace(started_at=NOW - 2 * DAY, ended_at=None)
    recorded = FlowRunSummary(FlowRun("recorded", "recorded", "main", NOW - 2 * DAY, "recorded"), None)

    assert names(Rule(older_than=DAY).select([begun, recorded], NOW)) == ["recorded", "begun"]


def test_newest_runs_stay() -> None:
    """The newest of all runs are kept, whatever else is said."""
    runs = [run("c", 5 * DAY), run("b", 6 * DAY), run("a", 7 * DAY)]

    assert names(Rule(keep_last=2).select(runs, NOW)) == ["a"]
    assert names(Rule(older_than=DAY, keep_last=3).select(runs, NOW)) == []


def test_states_are_met_by_name_or_type() -> None:
    """A name means runs of that very state, a type all of its names."""
    runs = [run("d"), run("c", state="TimedOut", type="failed"), run("b", state="Failed"), run("a", state="Running")]

    assert names(Rule(states=frozenset({"failed"})).select(runs, NOW)) == ["b", "c"]
    assert names(Rule(states=frozenset({"timedout"})).select(runs, NOW)) == ["c"]


def test_run_without_a_change_is_pending() -> None:
    """Its record implies that state."""
    pending = FlowRunSummary(FlowRun("a", "a", "main", NOW, "a"), None)

    assert names(Rule(states=frozenset({"pending"})).select([pending], NOW)) == ["a"]


def test_all_conditions_must_hold() -> None:
    """Age, number and state are combined by `and`."""
    runs = [run("d", 9 * DAY, "Failed"), run("c", 9 * DAY, "Failed"), run("b", 9 * DAY), run("a", 1.0, "Failed")]

    assert names(Rule(DAY, 1, frozenset({"failed"})).select(runs, NOW)) == ["c"]


def test_subflow_runs_neither_go_nor_count() -> None:
    """They are part of the run at the top, also among the newest."""
    runs = [run("child", 9 * DAY, root_id="top", parent_id="top"), run("top", 9 * DAY), run("old", 9 * DAY)]

    assert names(Rule(keep_last=1).select(runs, NOW)) == ["old"]


def test_unknown_states_are_named_with_the_nearest() -> None:
    """Small letters do; what no state is called is told."""
    assert unknown_states(["completed", "TIMEDOUT", "Partly"], known=["Partly"]) == []
    assert unknown_states(["complet"]) == ["unknown state 'complet'; did you mean 'Completed'?"]


# -- [retention] --


def test_settings_have_the_table_with_its_origins() -> None:
    """Each option is kept as it was written, with its line."""
    settings, problems = settings_of('[retention]\nolder_than = "30d"\nkeep_last = 7\nstates = ["Completed", "Failed"]')

    assert problems == []
    assert settings.retention == {"older_than": "30d", "keep_last": 7, "states": ["Completed", "Failed"]}
    assert str(settings.origins["retention.keep_last"]) == "localflow.toml:3"
    assert Rule.of_options(settings.retention) == Rule(30 * DAY, 7, frozenset({"completed", "failed"}))


def test_without_the_table_nothing_is_said() -> None:
    """Neither an empty table nor none at all removes anything."""
    assert settings_of("")[0].retention == {}
    assert settings_of("[retention]") == (settings_of("[retention]")[0], [])


def test_variables_win() -> None:
    """Each option has an environment variable."""
    environ = {
        "LOCALFLOW_RETENTION__KEEP_LAST": "100",
        "LOCALFLOW_RETENTION__OLDER_THAN": "2w",
        "LOCALFLOW_RETENTION__STATES": '["Failed"]',
    }

    settings, problems = settings_of("[retention]\nkeep_last = 7", environ)

    assert problems == []
    assert settings.retention == {"keep_last": 100, "older_than": "2w", "states": ["Failed"]}
    assert str(settings.origins["retention.keep_last"]) == "LOCALFLOW_RETENTION__KEEP_LAST"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("keep = 3", "unknown option 'keep'; did you mean 'keep_last'?"),
        ("keep_last = 0", "keep_last must be an integer >= 1, got 0 (integer)"),
        ("keep_last = true", "keep_last must be an integer >= 1, got true (boolean)"),
        ("older_than = 30", 'older_than must be a duration such as "12h" or "30d", got 30 (integer)'),
        ('older_than = "1y"', 'older_than must be a duration such as "12h" or "30d", got "1y" (string)'),
        ('states = "Failed"', 'states must be an array of states such as ["Completed"], got "Failed" (string)'),
        ("states = []", 'states must be an array of states such as ["Completed"], got an array'),
        ('states = ["Complete"]', "states names an unknown state 'Complete'; did you mean 'Completed'?"),
        (
            'states = ["Completed"]',
            "states alone would remove each run as it ends; set older_than or keep_last beside it",
        ),
    ],
)
def test_mistakes_are_told_with_their_line(line: str, problem: str) -> None:
    """The table is checked as strictly as the others."""
    assert settings_of(f"[retention]\n{line}")[1] == [f"localflow.toml:2: [retention] {problem}"]


@pytest.mark.parametrize(
    ("variable", "problem"),
    [
        ("LOCALFLOW_RETENTION", "names no option; write LOCALFLOW_RETENTION__OPTION"),
        ("LOCALFLOW_RETENTION__KEEP_LAST", '[retention] keep_last must be an integer >= 1, got "x" (string)'),
    ],
)
def test_mistakes_in_variables_are_told(variable: str, problem: str) -> None:
    """They have the variable's name for a place."""
    assert settings_of("", {variable: "x"})[1] == [f"{variable}: {problem}"]


def test_retention_that_is_no_table() -> None:
    """A value in its place is refused."""
    assert settings_of("retention = 3")[1] == ["localflow.toml:1: retention must be a table, got 3 (integer)"]


def test_settings_in_force_are_shown() -> None:
    """`localflow config show --origin` has each option that was given."""
    Path("localflow.toml").write_text('[retention]\nolder_than = "30d"\nstates = ["Completed"]\n')

    shown = {each.key: (each.value, each.origin) for each in Project.load().show()}

    assert shown["retention.older_than"] == ("30d", "localflow.toml:2")
    assert shown["retention.states"] == (["Completed"], "localflow.toml:3")
    json.dumps(shown)
