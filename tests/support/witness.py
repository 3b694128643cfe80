"""What sites do and what must stay secret, noted while it happens, for tests to judge by later."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import veilsum.secagg.site as site_module
from veilsum.control import RoundId
from veilsum.secagg import dealing
from veilsum.site.effects import Train, Upload
from veilsum.site.events import UploadDone
from veilsum.site.session import SiteCore

Note: TypeAlias = Callable[..., None]
"""Takes the name of a method of Witness and its arguments."""


@dataclass
class Witness:
    """What happened at the sites of one federation.

    Attributes:
        counted: (site, round) whose site was told that its update counts.
        uploads: digest of a mask key -> digests of what was masked with it.
        trained: seeds that a site trained with in a round.
        contributed: digests of the updates of a site that were ready to leave in a round.
        opened: (context of an attempt, dealer) -> of which of its seeds, "self" and "mask", sites
            gave shares away: with both of them its update is no secret any more.
        secrets: seeds of masks, and shares of them that sites sent.
        complaints: what should not have happened to a site.
    """

    counted: set[tuple[str, RoundId]] = field(default_factory=set)
    uploads: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    trained: defaultdict[tuple[str, RoundId], set[int]] = field(
        default_factory=lambda: defaultdict(set)
    )
    contributed: defaultdict[tuple[str, RoundId], set[str]] = field(
        default_factory=lambda: defaultdict(set)
    )
    opened: defaultdict[tuple[bytes, str], set[str]] = field(
        default_factory=lambda: defaultdict(set)
    )
    secrets: set[bytes] = field(default_factory=set, repr=False)
    complaints: list[str] = field(default_factory=list)

    def note(self, what: str, *values: Any) -> None:
        """Takes what watching() tells."""
        match what, *values:
            case "counted", site, round_id:
                self.counted.add((site, round_id))
            case "masked", key, made:
                self.uploads[key].add(made)
            case "trained", site, round_id, seed:
                self.trained[site, round_id].add(seed)
            case "contributed", site, round_id, made:
                self.contributed[site, round_id].add(made)
            case "opened", context, dealer, which:
                self.opened[context, dealer].add(which)
            case "secret", value:
                self.secrets.add(value)
            case _:
                raise ValueError(f"nothing is known of {what!r}")


@contextmanager
def watching(note: Note) -> Iterator[None]:
    """Within it, what sites of this process do is noted."""
    handle, encode = SiteCore.handle, site_module.encode_upload
    make_secrets, unmask_shares = dealing.make_secrets, site_module.unmask_shares

    def watched_handle(core: SiteCore, event: Any) -> Any:
        if isinstance(event, UploadDone):
            note("counted", core._site, event.round)
        effects = handle(core, event)
        for effect in effects:
            match effect:
                case Train(round_id, _, task):
                    note("trained", core._site, round_id, task.seed)
                case Upload(header, chunks):
                    note("contributed", core._site, header.round, _digest(chunks))
        return effects

    def watched_encode(plan: Any, contribution: Any, masks: Any, **how: Any) -> Any:
        keys = [_digest([key]) for key in masks.keys]
        encoded = encode(plan, contribution, masks, **how)
        for key in keys:
            note("masked", f"{how['update_id']}/{key}", _digest(encoded.chunks))
        return encoded

    def watched_secrets(*arguments: Any) -> Any:
        made = make_secrets(*arguments)
        for seed in (made.mask_seed, made.self_seed):
            note("secret", bytes(memoryview(seed)))
        return made

    def watched_shares(*arguments: Any) -> Any:
        message = unmask_shares(*arguments)
        given = {"self": message.self_shares, "mask": message.mask_shares}
        for which, shares in given.items():
            for dealer, share in shares:
                note("opened", message.context, dealer, which)
                note("secret", bytes(share))
        return message

    SiteCore.handle = watched_handle  # type: ignore[method-assign]
    site_module.encode_upload = watched_encode
    dealing.make_secrets, site_module.unmask_shares = watched_secrets, watched_shares
    try:
        yield
    finally:
        SiteCore.handle = handle  # type: ignore[method-assign]
        site_module.encode_upload = encode
        dealing.make_secrets, site_module.unmask_shares = make_secrets, unmask_shares


def _digest(parts: Any) -> str:
    return hashlib.sha256(b"".join(memoryview(part) for part in parts)).hexdigest()
