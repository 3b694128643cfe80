"""What the demo is asked to do."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from veilsum import plain
from veilsum.codecs.families import ring_bits
from veilsum.control import Deadlines, RunSpec, TaskSettings
from veilsum.demo.data import FEWEST_SITES, MOST_SITES
from veilsum.errors import ConfigError

DEFAULT_FOLDER = Path("veilsum-demo")
DEFAULT_ROUNDS = 12
TASK_ID = "lung-nodules"
METRICS = ("auc", "train_loss")

# Chosen on this data. No change of a parameter came above a third of the clip, so that no
# site has to refuse a round.
_TASK_EPOCHS = 3
_BATCH = 32
_LEARNING_RATE = 0.1
_CLIP = 1.0
_VALUE_BITS = 20
_WEIGHT_CAP = 2048

_DROP = re.compile(r"(?P<site>[^@]+)@(?P<round>[0-9]{1,6})")


@dataclass(frozen=True, slots=True)
class Drop:
    """Kill this site's process in the middle of this round."""

    site: str
    round_number: int

    def __str__(self) -> str:
        return f"{self.site}@{self.round_number}"


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """Options of `veilsum demo`.

    Attributes:
        sites: how many, 3 to 12.
        rounds: how many.
        plain: sum updates that the coordinator can read, instead of masked ones.
        codec: of the updates in plain rounds.
        seed: of the initial model, of the order of the data, and of the sites' rounding.
        out: folder for everything that is made.
        drop: "SITE@ROUND" to kill that site in that round, "none" for an undisturbed run;
            empty kills the largest site in the middle of the run.

    Raises:
        ConfigError: an option cannot work.
    """

    sites: int = MOST_SITES
    rounds: int = DEFAULT_ROUNDS
    plain: bool = False
    codec: str = "f32"
    seed: int = 1
    out: Path = DEFAULT_FOLDER
    drop: str = ""

    def __post_init__(self) -> None:
        if not FEWEST_SITES <= self.sites <= MOST_SITES:
            raise ConfigError(f"sites must be {FEWEST_SITES} to {MOST_SITES}, got {self.sites}")
        if not 1 <= self.rounds <= 1000:
            raise ConfigError(f"rounds must be 1 to 1000, got {self.rounds}")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed must be 0 to 2**32-1, got {self.seed}")
        if self.codec != "f32" and not self.plain:
            raise ConfigError(
                f"codec {self.codec!r} is for plain rounds; masked rounds have their own",
                hint="add --plain, or leave --codec out",
            )
        if self.plain:
            plain.codec_settings(self.codec, _CLIP)
        self.run_spec()

    def chosen_drop(self, sizes: dict[str, int]) -> Drop | None:
        """Which site to kill when.

        Args:
            sizes: site -> number of images.

        Raises:
            ConfigError: no such site or round, or the rest could not finish the round.
        """
        survivable = self.plain or self.sites > FEWEST_SITES
        if self.drop == "none" or (not self.drop and not survivable):
            return None
        if not self.drop:
            # The largest trains longest, and so is surely still at work when it is killed.
            largest = max(sorted(sizes), key=lambda site: sizes[site])
            return Drop(largest, (self.rounds + 1) // 2)
        drop = _parsed_drop(self.drop)
        if drop.site not in sizes:
            raise ConfigError(
                f"there is no site {drop.site!r} to drop", hint=f"sites: {', '.join(sorted(sizes))}"
            )
        if not 1 <= drop.round_number <= self.rounds:
            raise ConfigError(f"cannot drop a site in round {drop.round_number} of {self.rounds}")
        if not survivable:
            raise ConfigError(
                f"a masked round of {self.sites} sites cannot lose one and go on: the sum of two "
                "updates shows each of the two sites the other's",
                hint="use 4 or more sites, or --plain",
            )
        return drop

    def task(self) -> TaskSettings:
        """How a site trains in one round."""
        return TaskSettings(
            epochs=_TASK_EPOCHS, batch_size=_BATCH, learning_rate=_LEARNING_RATE, seed=self.seed
        )

    def run_spec(self) -> RunSpec:
        """The run that the demo submits."""
        return RunSpec(
            task_id=TASK_ID,
            rounds=self.rounds,
            masked=not self.plain,
            codec=self.codec,
            min_sites=2 if self.plain else 3,
            # A plain ring codec holds whole steps: its own bits are the steps'.
            value_bits=ring_bits(self.codec) or _VALUE_BITS,
            clip=_CLIP,
            weight_cap=_WEIGHT_CAP,
            metrics=METRICS,
            task=self.task(),
            # The proof sums a round again from what its sites trained; in a second attempt some
            # would have trained anew.
            max_attempts=1,
            # A dozen processes start at once on what may be two processors.
            deadlines=Deadlines(join_s=180.0, keys_s=60.0, shares_s=60.0, inputs_s=300.0),
        )


def _parsed_drop(text: str) -> Drop:
    parts = _DROP.fullmatch(text)
    if parts is None:
        raise ConfigError(f"drop must be SITE@ROUND or none, got {text!r}")
    return Drop(parts["site"], int(parts["round"]))
