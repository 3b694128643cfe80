"""Who may call what: every method of every service, by every role, with and without TLS."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2

from support.consortium import Consortium, make_consortium
from support.raw import METHODS, NOT_SERVED, call, credentials_of, dialled, said
from support.serving import run_async, serving
from veilsum.pki.authority import create_authority
from veilsum.pki.identity import ROLES, Identity
from veilsum.pki.issue import issue
from veilsum.transport.callers import INSECURE_IDENTITY

EVERYBODY = frozenset(ROLES)
SITE, OPERATOR = frozenset({"site"}), frozenset({"operator"})

# One row for each method there is; a method without one fails.
ROWS = {
    "/veilsum.v1.Federation/Join": SITE,
    "/veilsum.v1.Federation/FetchModel": SITE,
    "/veilsum.v1.Federation/FetchSum": SITE,
    "/veilsum.v1.Federation/FetchState": SITE,
    "/veilsum.v1.Federation/FetchLinks": SITE,
    "/veilsum.v1.Federation/FetchAudit": SITE,
    "/veilsum.v1.Federation/PushUpdate": SITE,
    "/veilsum.v1.Federation/PushStatus": SITE,
    "/veilsum.v1.Operator/SubmitRun": OPERATOR,
    "/veilsum.v1.Operator/GetRun": OPERATOR,
    "/veilsum.v1.Operator/ListRuns": OPERATOR,
    "/veilsum.v1.Operator/WatchRun": OPERATOR,
    "/veilsum.v1.Operator/AbortRun": OPERATOR,
    "/veilsum.v1.Operator/PruneRuns": OPERATOR,
    "/grpc.health.v1.Health/Check": EVERYBODY,
    "/grpc.health.v1.Health/List": EVERYBODY,
    "/grpc.health.v1.Health/Watch": EVERYBODY,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": EVERYBODY,
}
# Not every release of the health service declares all of its methods.
MAY_CALL = {path: ROWS[path] for path in ROWS if path in METHODS or path not in NOT_SERVED}
# What a call that got through the door may end with, in an empty coordinator.
LET_IN = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
}
UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED
DENIED = grpc.StatusCode.PERMISSION_DENIED
UNKNOWN = grpc.StatusCode.UNAUTHENTICATED
NO_CONNECTION = grpc.StatusCode.UNAVAILABLE


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Consortium:
    return make_consortium(tmp_path_factory.mktemp("consortium"), ["a", "b", "c"])


def test_every_method_has_a_row() -> None:
    assert set(MAY_CALL) == set(METHODS)


def test_a_coordinator_serves_the_services_of_the_table_and_no_other(
    consortium: Consortium, tmp_path: Path
) -> None:
    path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    listing = reflection_pb2.ServerReflectionRequest(list_services="")

    async def main() -> None:
        async with (
            serving(consortium.coordinator_settings(tmp_path / "state")) as port,
            dialled(port, credentials_of(consortium.operator)) as channel,
        ):
            asked = call(channel, path, _once(listing.SerializeToString()))
            answer = reflection_pb2.ServerReflectionResponse.FromString(await asked.read())
            served = {service.name for service in answer.list_services_response.service}
            assert served == {path.split("/")[1] for path in MAY_CALL}

    run_async(main)


async def _once(message: bytes):
    yield message


# --- with certificates --------------------------------------------------------------


@contextmanager
def _certificates(consortium: Consortium, folder: Path) -> Iterator[dict]:
    """(credentials, the role they are for; None if they are good for nothing) by name."""
    ca = consortium.hub.ca.read_bytes()
    other = create_authority(folder / "other", consortium.authority.consortium)
    relay = issue(consortium.authority, "relay", folder.name, folder / "members")
    stranger = issue(consortium.authority, "site", f"not {folder.name}", folder / "members")
    foreign = issue(other, "site", "a", folder / "foreign")
    foreign_operator = issue(other, "operator", "ann", folder / "foreign")
    yield {
        "site": (credentials_of(consortium.sites["a"]), "site"),
        "operator": (credentials_of(consortium.operator), "operator"),
        "relay": (credentials_of(relay), "relay"),
        # It is for serving only: TLS refuses it before anything is called.
        "coordinator": (credentials_of(consortium.hub), None),
        "a site that is not in the roster": (credentials_of(stranger), "nobody"),
        "nobody": (grpc.ssl_channel_credentials(ca), None),
        "no TLS": (None, None),
        "another authority's site": (credentials_of(foreign, ca), None),
        "another authority's operator": (credentials_of(foreign_operator, ca), None),
    }


def test_a_certificate_opens_what_its_role_may_call_and_nothing_else(
    consortium: Consortium, tmp_path: Path
) -> None:
    async def main() -> None:
        with _certificates(consortium, tmp_path) as certificates:
            async with serving(consortium.coordinator_settings(tmp_path / "state")) as port:
                for name, (credentials, role) in certificates.items():
                    async with dialled(port, credentials) as channel:
                        for path, allowed in MAY_CALL.items():
                            status, text = await said(channel, path, b"")
                            if status is UNIMPLEMENTED and path in NOT_SERVED:
                                continue
                            if role is None:
                                assert status is NO_CONNECTION, (name, path, text)
                            elif role in allowed:
                                assert status in LET_IN, (name, path, text)
                            else:
                                assert status is DENIED, (name, path, text)

    run_async(main)


# --- without ------------------------------------------------------------------------


def test_without_tls_a_name_opens_as_much_as_a_certificate_would(
    consortium: Consortium, tmp_path: Path
) -> None:
    none = {"ca": None, "tls_certificate": None, "tls_key": None}
    settings = consortium.coordinator_settings(tmp_path / "state", insecure=True, **none)
    names = {"site": "a"}
    claims = {
        Identity("test", role, names.get(role, "x")).uri: (role, DENIED) for role in ROLES
    } | {Identity("other", role, "a").uri: (None, DENIED) for role in ROLES}
    claims |= {
        Identity("test", "site", "zed").uri: (None, DENIED),
        "veilsum://test/root/a": (None, UNKNOWN),
        "a": (None, UNKNOWN),
        "": (None, UNKNOWN),
    }

    async def main() -> None:
        async with serving(settings) as port, dialled(port) as channel:
            for claim, (role, refusal) in claims.items():
                metadata = ((INSECURE_IDENTITY, claim),) if claim else ()
                for path, allowed in MAY_CALL.items():
                    status, text = await said(channel, path, b"", metadata=metadata)
                    if status is UNIMPLEMENTED and path in NOT_SERVED:
                        continue
                    expected = LET_IN if role in allowed else {refusal}
                    assert status in expected, (claim, path, text)

    run_async(main)
