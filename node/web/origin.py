"""Where a request comes from: the address, whether it is a browser's, and of which page."""

import ipaddress
from collections.abc import Sequence
from typing import TypeAlias
from urllib.parse import urlsplit

from starlette.requests import Request

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

# A browser sends one of these with every form and every script's request; it lets no page forge
# them (Fetch, forbidden request-headers).
BROWSERS = ("origin", "sec-fetch-site", "sec-fetch-mode", "referer", "cookie")
# A proxy says that it is one; whoever comes through it is not on this machine.
FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip", "via")
SAFE = ("GET", "HEAD", "OPTIONS")  # RFC 9110 9.2.1: they change nothing
# Of the scripts of our pages: with a safe method they fetch again what has changed.
OF_A_SCRIPT = "hx-request"
STREAM = "/live"
OURS = ("same-origin", "none")  # of Sec-Fetch-Site; none: typed by the person
LONGEST_ADDRESS = 64
IPV6_NETWORK_BITS = 64  # what one subscriber has at least (RFC 6177): any address of it is theirs


def is_browser(request: Request) -> bool:
    """True where a browser asks, which does what any page of any site tells it."""
    return any(name in request.headers for name in BROWSERS)


def is_by_hand(request: Request) -> bool:
    """True where a person does something; False for what an open page asks for by itself."""
    if request.method not in SAFE:
        return True
    return request.url.path != STREAM and OF_A_SCRIPT not in request.headers


def is_foreign(request: Request) -> bool:
    """True where a page of another site made a browser send this."""
    site = request.headers.get("sec-fetch-site")
    if site is not None and site not in OURS:
        return True
    origin = request.headers.get("origin")
    if origin is None:
        return False
    # A proxy in front may speak TLS and we do not, so that the scheme says nothing.
    return _authority(origin) != request.headers.get("host", "").lower()


def is_forwarded(request: Request) -> bool:
    """True where a proxy says that it passes on a request of somebody else."""
    return any(name in request.headers for name in FORWARDED)


def is_local(request: Request) -> bool:
    """True where the connection comes from this machine."""
    address = _address(peer(request))
    return address is not None and address.is_loopback


def names_this_machine(request: Request) -> bool:
    """True where the Host header is a loopback name.

    A page may point a name of its own at 127.0.0.1 (DNS rebinding): the browser then takes us for
    that page's site, but it still sends that name.
    """
    host = _host_of(request.headers.get("host", ""))
    if host == "localhost":
        return True
    address = _address(host)
    return address is not None and address.is_loopback


def peer(request: Request) -> str:
    """The address that the connection comes from."""
    return request.client.host if request.client is not None else ""


def is_from(request: Request, networks: Sequence[Network]) -> bool:
    """True where the connection comes from one of these networks."""
    address = _address(peer(request))
    return address is not None and any(address in network for network in networks)


def address(request: Request, proxies: Sequence[Network]) -> str:
    """Who asks: the peer, or, where that is a trusted proxy, who asked the proxy."""
    if not is_from(request, proxies):
        return peer(request)[:LONGEST_ADDRESS]
    last = request.headers.get("x-forwarded-for", "").rsplit(",", 1)[-1].strip()
    return (str(_address(last)) if _address(last) else peer(request))[:LONGEST_ADDRESS]


def counted(address: str) -> str:
    """Where somebody sits, for counting guesses: an IPv4 address, or the /64 of an IPv6 one."""
    found = _address(address)
    if not isinstance(found, ipaddress.IPv6Address):
        return str(found or address)
    rest = found.max_prefixlen - IPV6_NETWORK_BITS
    network = ipaddress.IPv6Address(int(found) >> rest << rest)
    return f"{network}/{IPV6_NETWORK_BITS}"


def _authority(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:  # brackets that close nowhere
        return ""


def _host_of(authority: str) -> str:
    try:
        return urlsplit(f"//{authority}").hostname or ""
    except ValueError:
        return ""


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = getattr(found, "ipv4_mapped", None)  # ::ffff:127.0.0.1, of a socket for both
    return mapped if isinstance(mapped, ipaddress.IPv4Address) else found
