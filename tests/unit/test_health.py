"""What a node knows of its own machine: the addresses that a scanner would be given."""

import ipaddress

import pytest

from node import health


@pytest.mark.parametrize("host", ["127.0.0.1", "10.1.2.3", "ct-node.example"])
def test_a_host_that_was_named_is_the_address(host: str) -> None:
    assert health.addresses(host) == (host,)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", ""])
def test_what_listens_everywhere_is_reached_at_an_address_of_this_machine(host: str) -> None:
    first, *others = health.addresses(host)
    for address in (first, *others):
        assert not ipaddress.ip_address(address).is_unspecified
    assert len({first, *others}) == 1 + len(others)
    assert others == [] or not ipaddress.ip_address(first).is_loopback
