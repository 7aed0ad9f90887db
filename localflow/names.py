"""Readable names for flow runs: an adjective and an animal."""

from __future__ import annotations

import os

_ADJECTIVES = """
able agile amber ample azure balmy bold brave brisk broad calm candid civil clever cosmic crisp curious daring deft
eager early easy even fair fleet fluent fond frank fresh gentle glad golden grand green happy hardy honest humble jolly
keen kind lively loyal lucid lucky mellow merry mild modest neat nimble noble olive patient placid polite proud prudent
quick quiet rapid ready robust rosy royal rustic serene sharp silver sleek smart smooth snug sober solid spry stable
steady stout subtle sunny swift tidy tranquil trim true upbeat vast vivid warm wise witty young zesty
"""

_ANIMALS = """
adder badger bat bear beaver bee bison boar bobcat camel caribou cat cobra condor coral crab crane cricket crow deer
dingo dolphin dove dragon duck eagle egret elk falcon ferret finch fox frog gazelle gecko gibbon goose gopher grouse
gull hare hawk heron hornet horse hyena ibex ibis iguana jackal jaguar jay kestrel kiwi koala lark lemur leopard lion
lizard llama lobster lynx macaw magpie marlin marmot marten mole moose moth mule newt ocelot octopus orca oriole osprey
otter owl ox oyster panda parrot pelican penguin pike puffin puma quail rabbit raccoon raven robin salmon seal shark
shrew skunk sloth snail sparrow spider squid stork swan tapir tern tiger toad trout turtle viper vole walrus wasp whale
wolf wombat wren yak zebra
"""


def random_name() -> str:
    """Return a two-word slug such as `brave-otter`, without touching the user's random number generator."""
    return f"{_random_word(_ADJECTIVES)}-{_random_word(_ANIMALS)}"


def random_id() -> str:
    """Return a new run id: 20 hexadecimal digits."""
    return os.urandom(10).hex()


def _random_word(text: str) -> str:
    words = text.split()
    return words[int.from_bytes(os.urandom(4)) % len(words)]
