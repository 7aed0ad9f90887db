"""Finding futures in arguments and putting data in their place, at any depth and in any container."""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter, OrderedDict, UserDict, defaultdict, deque, namedtuple
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localflow import allow_failure, quote, unmapped
from localflow.arguments import Marker, find, find_in_call, find_tolerated, replace, replace_in_call


class Mark:
    """Stands for a future."""

    def __init__(self, value: object = None) -> None:
        self.value = value


KINDS = (Mark,)


def value_of(mark: Mark) -> object:
    """Return what replaces a mark."""
    return mark.value


def replaced(value: object) -> Any:
    """Return `value` with marks replaced by their values."""
    return replace(value, KINDS, value_of)


class Point(NamedTuple):
    x: object
    y: object = 0


Pair = namedtuple("Pair", ["left", "right"])


class ListWithLabel(list):
    """A list subclass with an attribute."""

    label = "none"


class DictWithLabel(dict):
    """A dict subclass whose constructor takes something else."""

    def __init__(self, label: str) -> None:
        super().__init__()
        self.label = label


class TupleOfTwo(tuple):
    """A tuple subclass whose constructor takes the items one by one."""

    def __new__(cls, left: object, right: object) -> TupleOfTwo:
        """Take the items one by one."""
        return super().__new__(cls, (left, right))


@dataclasses.dataclass
class Box:
    content: object
    label: str = "box"


@dataclasses.dataclass(frozen=True)
class FrozenBox:
    content: object
    label: str = "frozen"


@dataclasses.dataclass(slots=True)
class SlotsBox:
    content: object
    label: str = "slots"


@dataclasses.dataclass(frozen=True, slots=True)
class FrozenSlotsBox:
    content: object
    label: str = "both"


@dataclasses.dataclass
class DerivedBox:
    """Has fields that the constructor does not take, one of which would refuse the constructor's way."""

    content: object
    derived: object = dataclasses.field(init=False)
    unset: object = dataclasses.field(init=False, repr=False)
    factor: dataclasses.InitVar[int] = 2

    def __post_init__(self, factor: int) -> None:
        self.derived = ("derived", factor)


@dataclasses.dataclass
class StrictBox:
    """Checks its content at construction, so rebuilding by constructor would run the check again."""

    content: object
    constructed: int = 0

    def __post_init__(self) -> None:
        self.constructed += 1


class Plain:
    """An object that is no container: not looked into."""

    def __init__(self, content: object) -> None:
        self.content = content


# -- what is found ---------------------------------------------------------------------------------------------------


def test_a_mark_itself_is_found_and_replaced() -> None:
    """The value may be the mark."""
    mark = Mark(3)

    assert find(mark, KINDS) == [mark]
    assert replaced(mark) == 3


@pytest.mark.parametrize(
    "wrap",
    [
        lambda m: [m],
        lambda m: (m,),
        lambda m: {m},
        lambda m: frozenset({m}),
        lambda m: {"k": m},
        lambda m: {m: "v"},
        lambda m: Point(m),
        lambda m: Pair(1, m),
        lambda m: Box(m),
        lambda m: FrozenBox(m),
        lambda m: SlotsBox(m),
        lambda m: FrozenSlotsBox(m),
        lambda m: DerivedBox(m),
        lambda m: ListWithLabel([m]),
        lambda m: defaultdict(list, k=m),
        lambda m: OrderedDict(k=m),
        lambda m: Counter({m: 1}),
        lambda m: [({"k": (Box([{m}]),)},)],
    ],
)
def test_marks_are_found_in_every_container(wrap: Any) -> None:
    """Each kind of container is looked into, at any depth."""
    mark = Mark("data")

    assert find(wrap(mark), KINDS) == [mark]
    assert find(replaced(wrap(mark)), KINDS) == []


@pytest.mark.parametrize(
    "opaque",
    [Plain, lambda m: lambda: m, lambda m: deque([m]), lambda m: iter([m]), lambda m: UserDict(k=m), lambda m: Box],
    ids=["object", "closure", "deque", "iterator", "UserDict", "dataclass itself"],
)
def test_other_objects_are_not_looked_into(opaque: Any) -> None:
    """What is not one of the containers arrives as it is."""
    item = opaque(Mark())

    assert find(item, KINDS) == []
    assert replaced(item) is item


def test_each_mark_is_found_once_in_reading_order() -> None:
    """The order of discovery is that of a reader, and repetitions do not count."""
    a, b, c = Mark("a"), Mark("b"), Mark("c")

    assert find([a, (b, [a]), {"k": c, "l": b}], KINDS) == [a, b, c]


def test_nothing_is_found_in_atoms_and_empty_containers() -> None:
    """Values without marks give nothing."""
    for value in (None, 1, "text", b"bytes", 1.5, True, [], {}, (), set(), object(), int, range(3)):
        assert find(value, KINDS) == []
        assert replaced(value) is value


# -- what is copied --------------------------------------------------------------------------------------------------


def test_containers_without_a_mark_stay_the_very_same_objects() -> None:
    """Only what holds a mark is copied."""
    untouched = {"rows": [1, [2, 3]], "box": Box([1])}
    arguments = [untouched, [Mark(1)], (1, 2)]

    result = replaced(arguments)

    assert result == [untouched, [1], (1, 2)]
    assert result[0] is untouched
    assert result[2] is arguments[2]


def test_the_original_is_left_as_it_was() -> None:
    """Replacing never changes the caller's containers."""
    mark = Mark(1)
    box, items, table, members = Box(mark), [mark], {"k": mark, mark: 2}, {mark}

    replaced((box, items, table, members))

    assert box.content is mark
    assert items == [mark]
    assert table == {"k": mark, mark: 2}
    assert members == {mark}


def test_a_value_without_a_mark_comes_back_itself() -> None:
    """A deep structure without marks is the same object afterwards."""
    value = [{"a": (1, {2, 3})}, Box(FrozenBox([])), Point(1, 2)]

    assert replaced(value) is value


def test_a_container_met_twice_stays_one_container() -> None:
    """Two references to one list are two references to one new list."""
    shared = [Mark(1)]

    first, second = replaced([shared, shared])

    assert first == [1]
    assert first is second


def test_the_substitute_is_asked_once_for_each_mark() -> None:
    """A mark in many places has one replacement, the very same object everywhere."""
    mark, asked = Mark(), []

    def substitute(item: Mark) -> object:
        asked.append(item)
        return ["data"]

    result = replace([mark, (mark, {"k": mark})], KINDS, substitute)

    assert asked == [mark]
    assert result[0] is result[1][0] is result[1][1]["k"]


def test_what_is_put_in_place_is_not_looked_into() -> None:
    """Data that holds marks of its own is passed on as it is."""
    inner = Mark("inner")

    assert replaced([Mark([inner])]) == [[inner]]


def test_none_and_false_are_proper_replacements() -> None:
    """A mark may stand for a value that is false."""
    assert replaced([Mark(None), Mark(False), Mark(())]) == [None, False, ()]


# -- containers keep what they are -----------------------------------------------------------------------------------


def test_named_tuples_keep_their_type() -> None:
    """Both flavours of named tuple are rebuilt as themselves."""
    point, pair = replaced([Point(Mark(1), y=2), Pair(Mark(1), Mark(2))])

    assert (type(point), point) == (Point, Point(1, 2))
    assert (type(pair), pair) == (Pair, Pair(1, 2))


def test_a_tuple_subclass_with_its_own_constructor_is_rebuilt() -> None:
    """A tuple subclass need not take an iterable."""
    result = replaced(TupleOfTwo(Mark(1), 2))

    assert type(result) is TupleOfTwo
    assert tuple(result) == (1, 2)


def test_a_defaultdict_keeps_its_factory() -> None:
    """The copy of a defaultdict still makes defaults."""
    result = replaced(defaultdict(list, k=Mark(1)))

    assert result == {"k": 1}
    assert result["new"] == []


def test_an_ordered_dict_keeps_type_and_order() -> None:
    """The order of keys survives."""
    result = replaced(OrderedDict([("b", Mark(1)), ("a", 2), (Mark("c"), 3)]))

    assert type(result) is OrderedDict
    assert list(result.items()) == [("b", 1), ("a", 2), ("c", 3)]


def test_subclasses_keep_their_attributes() -> None:
    """A copied list or dict subclass has the attributes of the original."""
    items, table = ListWithLabel([Mark(1)]), DictWithLabel("mine")
    items.label = "yours"
    table["k"] = Mark(2)

    new_items, new_table = replaced((items, table))

    assert (type(new_items), new_items, new_items.label) == (ListWithLabel, [1], "yours")
    assert (type(new_table), new_table, new_table.label) == (DictWithLabel, {"k": 2}, "mine")


@pytest.mark.parametrize("kind", [Box, FrozenBox, SlotsBox, FrozenSlotsBox])
def test_dataclasses_of_every_make_are_rebuilt(kind: Any) -> None:
    """Frozen and slotted dataclasses are copied like plain ones."""
    result = replaced(kind([Mark(1)], label="l"))

    assert type(result) is kind
    assert (result.content, result.label) == ([1], "l")


def test_fields_that_the_constructor_does_not_take_survive() -> None:
    """Derived fields are kept, fields never set stay unset."""
    box = DerivedBox(Mark(1), factor=5)

    result = replaced(box)

    assert (result.content, result.derived) == (1, ("derived", 5))
    assert not hasattr(result, "unset")


def test_a_mark_in_a_derived_field_is_replaced() -> None:
    """Fields with init=False are looked into like the others."""
    box = DerivedBox(1)
    box.derived = [Mark("late")]

    assert replaced(box).derived == ["late"]


def test_a_dataclass_is_copied_without_constructing_it_again() -> None:
    """Post-init code of a user's dataclass does not run a second time."""
    assert replaced(StrictBox(Mark(1))).constructed == 1


def test_attributes_beside_the_fields_survive() -> None:
    """What a dataclass instance carries beyond its fields is kept."""
    box: Any = Box(Mark(1))
    box.extra = "kept"

    assert replaced(box).extra == "kept"


def test_marks_in_sets_and_keys_are_replaced_by_equal_data() -> None:
    """Two marks with equal data become one member, as the data themselves would."""
    assert replaced({Mark(1), Mark(1), 2}) == {1, 2}
    assert replaced(frozenset({Mark("a")})) == frozenset({"a"})
    assert replaced({Mark("k"): Mark("v")}) == {"k": "v"}


def test_unhashable_data_in_a_set_is_a_type_error() -> None:
    """Data that cannot be a set's member says so."""
    with pytest.raises(TypeError, match="unhashable"):
        replaced({Mark([1])})


# -- cycles and depth ------------------------------------------------------------------------------------------------


def test_a_cycle_without_marks_comes_back_itself() -> None:
    """A list that holds itself does no harm."""
    loop: list[Any] = [1]
    loop.append({"back": loop})

    assert find(loop, KINDS) == []
    assert replaced(loop) is loop


def test_a_cycle_with_a_mark_ends() -> None:
    """A list that holds itself and a mark is searched once, and its mark is replaced."""
    mark = Mark(1)
    loop: list[Any] = [mark]
    loop.append(loop)

    result = replaced(loop)

    assert find(loop, KINDS) == [mark]
    assert result[0] == 1


def test_a_mark_beside_a_cycle_is_replaced() -> None:
    """A cycle elsewhere in the arguments stays the same object."""
    loop: list[Any] = []
    loop.append(loop)

    result = replaced([loop, Mark(1)])

    assert result[0] is loop
    assert result[1] == 1


def test_nesting_deeper_than_the_recursion_limit() -> None:
    """Arguments may be nested deeper than Python recurses."""
    mark = Mark("bottom")
    value: Any = mark
    for _ in range(10 * sys.getrecursionlimit()):
        value = [value]

    result = replaced(value)

    assert find(value, KINDS) == [mark]
    while isinstance(result, list):
        (result,) = result
    assert result == "bottom"


# -- quote -----------------------------------------------------------------------------------------------------------


def test_nothing_inside_a_quote_is_found() -> None:
    """A quoted mark is neither waited for nor replaced."""
    assert find([quote(Mark()), quote([Mark()])], KINDS) == []


def test_a_quote_gives_way_to_the_very_object() -> None:
    """What was quoted arrives itself, at any depth."""
    mark, inner = Mark(1), [Mark(2)]

    direct, nested = replaced((quote(mark), {"k": quote(inner)}))

    assert direct is mark
    assert nested["k"] is inner


def test_a_mark_may_be_quoted_and_passed() -> None:
    """The quoted occurrence stays, the plain one is replaced."""
    mark = Mark(1)

    assert replaced([quote(mark), mark]) == [mark, 1]


def test_only_one_quote_is_taken_off() -> None:
    """A quote inside a quote arrives as a quote."""
    inner = quote(1)

    assert replaced(quote(inner)) is inner


def test_repr_of_a_quote() -> None:
    """A quote shows what it holds."""
    assert repr(quote([1])) == "quote([1])"


# -- unmapped and allow_failure --------------------------------------------------------------------------------------

see_through = pytest.mark.parametrize("marker", [unmapped, allow_failure])


@see_through
def test_a_marker_is_looked_into_and_replaced_by_what_it_holds(marker: type[Marker[Any]]) -> None:
    """Marks in a marker are found, and the marker gives way to what it holds, with marks inside replaced."""
    mark, nested = Mark(1), [Mark(2)]

    assert find({"k": [marker(mark), marker(nested)]}, KINDS) == [mark, nested[0]]
    assert replaced({"k": [marker(mark), marker(nested)]}) == {"k": [1, [2]]}
    assert replaced(marker(marker(mark))) == 1


@see_through
def test_a_marker_of_a_plain_value_gives_the_very_object(marker: type[Marker[Any]]) -> None:
    """What a marker holds is not copied when there is nothing to replace in it."""
    held = [1]

    (args,) = replaced((marker(held),))

    assert args is held


@see_through
def test_a_marker_and_a_quote_inside_each_other(marker: type[Marker[Any]]) -> None:
    """A quote hides the marker in it, and a marker gives way to what the quote in it holds."""
    mark = Mark()
    hidden = marker(mark)

    assert find([marker(quote(mark)), quote(hidden)], KINDS) == []
    assert replaced([marker(quote(mark)), quote(hidden)]) == [mark, hidden]


def test_markers_among_the_kinds_are_found_and_looked_into() -> None:
    """Asked for markers as well, find gives them and what is inside them, but nothing inside a quote."""
    mark = Mark()
    outer, inner, quoted = unmapped([mark]), allow_failure(1), quote(Mark())

    assert find([outer, inner, quoted], (Mark, Marker)) == [outer, mark, inner, quoted]


def test_tolerated_marks_are_those_inside_an_allow_failure() -> None:
    """Only marks inside an allow_failure are tolerated, however deep it is and however deep in it they are."""
    plain, direct, deep, unmapped_one = Mark(), Mark(), Mark(), Mark()
    value = (plain, [allow_failure(direct), {"k": allow_failure([unmapped({"x": deep})])}], unmapped(unmapped_one))

    assert find_tolerated(value, KINDS) == [direct, deep]


def test_a_mark_that_is_also_outside_is_not_tolerated() -> None:
    """The strict place wins, whichever comes first and however the same container gets into both."""
    mark, shared = Mark(), [Mark()]

    assert find_tolerated([allow_failure(mark), mark], KINDS) == []
    assert find_tolerated([mark, allow_failure([mark])], KINDS) == []
    assert find_tolerated([allow_failure(shared), shared], KINDS) == []
    assert find_tolerated([shared, allow_failure(shared)], KINDS) == []


def test_the_snapshot_of_a_marker_keeps_marks_and_copies_their_containers() -> None:
    """Replaced by themselves, marks in a marker stay, in a copy of the container that held them."""
    held = [Mark()]

    copy = replace([allow_failure(held)], KINDS, lambda item: item)

    assert copy == [held]
    assert copy[0] is not held


def test_repr_of_markers() -> None:
    """A marker shows what it holds."""
    assert repr(unmapped(allow_failure("x"))) == "unmapped(allow_failure('x'))"


# -- any structure ---------------------------------------------------------------------------------------------------

leaves = st.one_of(st.integers(), st.text(max_size=3), st.none(), st.builds(lambda n: ("mark", n), st.integers(0, 5)))
structures = st.recursive(
    leaves.map(lambda leaf: ("leaf", leaf)),
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["list", "tuple", "box", "frozen", "point"]), st.lists(inner, max_size=3)),
        st.tuples(st.just("dict"), st.lists(inner, max_size=3)),
    ),
    max_leaves=20,
)


def built(plan: Any, leaf: Any) -> Any:
    """Build the planned structure, with `leaf` deciding what stands at its ends."""
    kind, content = plan
    if kind == "leaf":
        return leaf(content)
    items = [built(item, leaf) for item in content]
    match kind:
        case "list":
            return items
        case "tuple":
            return tuple(items)
        case "box":
            return Box(items)
        case "frozen":
            return FrozenBox(tuple(items))
        case "point":
            return Point(items)
        case _:
            return dict(enumerate(items))


@settings(max_examples=200, deadline=None)
@given(plan=structures)
def test_any_structure_is_rebuilt_with_data_in_place(plan: Any) -> None:
    """Replacing gives what building the structure from data would have given."""
    marks = [Mark(("data", n)) for n in range(6)]

    def is_mark(leaf: object) -> bool:
        return isinstance(leaf, tuple) and leaf[0] == "mark"

    with_marks = built(plan, lambda leaf: marks[leaf[1]] if is_mark(leaf) else leaf)
    with_data = built(plan, lambda leaf: ("data", leaf[1]) if is_mark(leaf) else leaf)

    result = replaced(with_marks)

    assert result == with_data
    if not find(with_marks, KINDS):
        assert result is with_marks


@given(st.lists(st.integers(0, 4), max_size=5), st.dictionaries(st.sampled_from("ab"), st.integers(0, 4)))
def test_the_arguments_of_a_call_are_treated_like_any_structure(places: list[int], named: dict[str, int]) -> None:
    """What is found in them and put in its place is the same whether or not they hold containers."""
    shared = Mark("s")
    values: list[Any] = [1, shared, Mark("t"), [shared, Mark("u")], quote(shared)]
    args = tuple(values[place] for place in places)
    kwargs = {name: values[place] for name, place in named.items()}
    kinds = (Mark, quote)

    assert find_in_call(args, kwargs, kinds) == find((*args, *kwargs.values()), kinds)
    substituted, named_ones = replace_in_call(args, kwargs, KINDS, value_of)
    assert (substituted, dict(named_ones)) == replaced((args, kwargs))
