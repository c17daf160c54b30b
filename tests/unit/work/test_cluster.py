"""Who takes whom for lost, on a real PostgreSQL with clocks that are turned by hand."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import text

from node.config import Config
from node.store import LEASE_SECONDS, Store, opened
from node.work.cluster import Cluster
from storage.leases import Holder
from storage.site import control
from storage.site.nodes import LOST, SERVING
from tests.conftest import TEMPLATE, Clock
from tests.postgres import PostgresServer

OTHER = "two/MIDSLICE"


@pytest.fixture
def store(settings: Config, postgres_server: PostgresServer) -> Iterator[Store]:
    url = postgres_server.create("cluster", template=TEMPLATE)
    storage = settings.storage.model_copy(update={"database": url})
    with opened(settings.model_copy(update={"storage": storage}), "one/MIDSLICE") as store:
        store.nodes.start(store.node_id)
        store.nodes.start(OTHER)
        yield store
    postgres_server.drop("cluster")


@pytest.fixture
def cluster(store: Store, clock: Clock) -> Cluster:
    """This node, whose heartbeats had no gap for long; the other one has said nothing for long."""
    holder = Holder(store.node_id, store.now, LEASE_SECONDS)
    handlers: Any = SimpleNamespace(requests=control.RequestQueue(store.database, holder))
    cluster = Cluster(store, store.config, handlers, lambda _: None, str, steady=clock)
    began = clock.now
    while clock.now - began <= store.config.node.lost_seconds:
        cluster.beat()
        clock.now += cluster.beat_seconds
    with store.database.writing() as db:
        silent = text("UPDATE node SET heartbeat = heartbeat - 1000 WHERE id = :other")
        db.execute(silent, {"other": OTHER})
    return cluster


def other(store: Store) -> str:
    return next(node.state for node in store.nodes.get() if node.id == OTHER)


def test_a_node_that_gives_no_sign_of_life_is_lost(store: Store, cluster: Cluster) -> None:
    cluster.take_over()
    assert other(store) == LOST


def test_a_node_that_stood_still_itself_takes_nobody_for_lost_until_it_has_lived_for_as_long(
    store: Store, cluster: Cluster, clock: Clock
) -> None:
    """As where the machines of all nodes were frozen: each gives its next sign of life now."""
    clock.now += 1000.0
    cluster.take_over()
    assert other(store) == SERVING
    cluster.beat()
    cluster.take_over()
    assert other(store) == SERVING
