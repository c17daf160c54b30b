"""A client of an OpenID Connect provider: log-in by authorization code, with PKCE.

The provider is asked when somebody logs in, and never before. "Core" is OpenID Connect Core 1.0.
"""

import hashlib
import json
import re
import secrets
import ssl
import threading
import time
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any, TypeAlias
from urllib.parse import quote, urlencode, urlsplit

from joserfc import jws, jwt
from joserfc.errors import ClaimError, JoseError
from joserfc.jwk import JWKRegistry, Key

from node.config.sections import PROVIDER, Oidc
from node.errors import NodeError
from node.revocation import look_up

Claims: TypeAlias = Mapping[str, Any]

SECONDS = 10.0  # for an answer of the provider
MOST_BYTES = 1 << 20  # of an answer
KEPT_SECONDS = 600.0  # its addresses and keys: a key that was withdrawn is not used for longer
AGAIN_SECONDS = 5.0  # after it did not answer, it is not asked before
LEEWAY_SECONDS = 60  # by which its clock and ours may differ
# What the provider alone can sign. "none" and HS256, which whoever knows the secret can, are not
# among them, whatever a token says of itself.
ALGORITHMS = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "Ed25519"),
)
KEY_TYPES = ("RSA", "EC", "OKP")
WELL_KNOWN = "/.well-known/openid-configuration"
ERROR_CODE = re.compile(r"[a-z_]{1,40}")  # RFC 6749 4.1.2.1: what is repeated of an answer


class NotAnswering(NodeError):
    """The provider cannot be reached, or its answer is none."""


class NotAccepted(NodeError):
    """What the provider, or a browser in its name, has sent proves nothing."""


@dataclass(frozen=True)
class Attempt:
    """A log-in under way: what the answer must fit, and the page that is shown after it."""

    state: str
    nonce: str
    verifier: str
    began_at: float
    next: str

    @classmethod
    def new(cls, now: float, next: str) -> "Attempt":
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        return cls(state, nonce, verifier, now, next)


@dataclass(frozen=True)
class Person:
    """Somebody whom the provider knows: the subject, the name, the values of the claim of roles."""

    subject: str
    name: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class _Metadata:
    """The addresses of the provider, and what it says of itself (Discovery 1.0, 3)."""

    authorization: str
    token: str
    keys: str
    user_info: str
    end_session: str
    takes_basic: bool
    names_issuer: bool
    read_at: float


class Provider:
    """The provider of the configuration."""

    def __init__(self, settings: Oidc, now: Callable[[], float]) -> None:
        self._settings = settings
        self._now = now
        self._turn = threading.Lock()
        self._metadata: _Metadata | None = None
        self._keys: tuple[float, Sequence[Key]] | None = None
        self._failure: tuple[float, str] = (-AGAIN_SECONDS, "")  # by the monotonic clock

    @property
    def host(self) -> str:
        """The host of the provider, as people know it."""
        return urlsplit(self._settings.issuer).hostname or ""

    def look(self) -> None:
        """See whether it answers, and whether the secret can be read; NotAnswering where not."""
        self._known()
        self._secret()

    def authorization_url(self, attempt: Attempt) -> str:
        """Where the browser goes to log in (Core 3.1.2.1, RFC 7636 4.3)."""
        challenge = hashlib.sha256(attempt.verifier.encode()).digest()
        query = {
            "response_type": "code",
            "client_id": self._settings.client_id,
            "redirect_uri": self._settings.redirect_uri,
            "scope": " ".join(self._settings.scopes),
            "state": attempt.state,
            "nonce": attempt.nonce,
            "code_challenge": urlsafe_b64encode(challenge).rstrip(b"=").decode(),
            "code_challenge_method": "S256",
        }
        return _with_query(self._known().authorization, query)

    def end_session_url(self, back: str) -> str:
        """Where the browser goes to log out at the provider too; empty where it cannot."""
        address = self._known().end_session
        query = {"client_id": self._settings.client_id, "post_logout_redirect_uri": back}
        return _with_query(address, query) if address else ""

    def person(self, attempt: Attempt, answer: Mapping[str, str]) -> Person:
        """Take the answer that the browser brought, and learn who logs in."""
        metadata = self._known()
        self._check_answer(metadata, attempt, answer)
        tokens = self._tokens(metadata, attempt, answer["code"])
        claims = self._verified(str(tokens.get("id_token", "")), attempt.nonce)
        values = _values(claims, self._settings.roles_claim)
        name = _claim(claims, self._settings.name_claim)
        if (not values or name is None) and metadata.user_info:
            more = self._user_info(metadata, str(tokens.get("access_token", "")), claims)
            values = values or _values(more, self._settings.roles_claim)
            name = name if name is not None else _claim(more, self._settings.name_claim)
        subject = str(claims["sub"])
        return Person(subject, str(name) if name else subject, values)

    def _known(self) -> _Metadata:
        """The addresses, asked for again after a while; NotAnswering without them."""
        with self._turn:
            known = self._metadata
            if known is not None and 0 <= self._now() - known.read_at < KEPT_SECONDS:
                return known
            failed_at, sentence = self._failure
            if time.monotonic() - failed_at < AGAIN_SECONDS:
                raise NotAnswering(sentence)
            try:
                self._metadata = self._discovered()
            except NotAnswering as error:
                self._failure = time.monotonic(), str(error)
                raise
            return self._metadata

    def _discovered(self) -> _Metadata:
        issuer = self._settings.issuer
        document = self._ask(issuer.rstrip("/") + WELL_KNOWN)
        if document.get("issuer") != issuer:  # Discovery 4.3: by it alone are tokens known
            raise NotAnswering(f"the log-in provider {self.host} calls itself another issuer")
        methods = document.get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
        return _Metadata(
            authorization=self._address(document, "authorization_endpoint"),
            token=self._address(document, "token_endpoint"),
            keys=self._address(document, "jwks_uri"),
            user_info=self._address(document, "userinfo_endpoint", is_needed=False),
            end_session=self._address(document, "end_session_endpoint", is_needed=False),
            takes_basic="client_secret_basic" in methods,
            names_issuer=document.get("authorization_response_iss_parameter_supported") is True,
            read_at=self._now(),
        )

    def _address(self, document: Claims, key: str, *, is_needed: bool = True) -> str:
        address = document.get(key)
        if isinstance(address, str) and re.fullmatch(PROVIDER + r"(\?[^\s#]*)?", address):
            return address
        if is_needed or address is not None:
            raise NotAnswering(f"the log-in provider {self.host} names no {key} that can be used")
        return ""

    def _check_answer(
        self, metadata: _Metadata, attempt: Attempt, answer: Mapping[str, str]
    ) -> None:
        """Raise unless the answer is one to this attempt, of this provider, with a code."""
        if not secrets.compare_digest(answer.get("state", "").encode(), attempt.state.encode()):
            raise NotAccepted("the answer is of another log-in")
        named = answer.get("iss")  # RFC 9207: or a code of another provider would be sent here
        if named != self._settings.issuer and (named is not None or metadata.names_issuer):
            raise NotAccepted("the answer is of another provider")
        if "code" not in answer:
            why = _error_code(answer.get("error"))
            raise NotAccepted(f"the log-in provider did not log you in ({why})")

    def _tokens(self, metadata: _Metadata, attempt: Attempt, code: str) -> Claims:
        """Give the code for the tokens (Core 3.1.3.1), once: a second time it is worth nothing."""
        settings = self._settings
        fields = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": settings.redirect_uri,
            "code_verifier": attempt.verifier,
        }
        secret, headers = self._secret(), {}
        if secret and metadata.takes_basic:  # RFC 6749 2.3.1
            pair = f"{quote(settings.client_id, safe='')}:{quote(secret, safe='')}"
            headers["Authorization"] = f"Basic {b64encode(pair.encode()).decode()}"
        else:
            fields["client_id"] = settings.client_id
            fields |= {"client_secret": secret} if secret else {}
        return self._ask(metadata.token, fields, headers)

    def _secret(self) -> str:
        """Read at each log-in: it may be replaced while the node runs."""
        path = self._settings.client_secret_file
        try:
            return path.read_text("utf-8").strip() if path else ""
        except (OSError, UnicodeDecodeError) as error:
            sentence = "the file with the secret for the log-in provider cannot be read"
            raise NotAnswering(sentence) from error

    def _user_info(self, metadata: _Metadata, token: str, claims: Claims) -> Claims:
        """Ask for claims that the ID token lacks; only those of the same person count."""
        more = self._ask(metadata.user_info, headers={"Authorization": f"Bearer {token}"})
        if more.get("sub") != claims["sub"]:  # Core 5.3.2
            raise NotAccepted("the user info is of another person")
        return more

    def _verified(self, token: str, nonce: str) -> Claims:
        """The claims of an ID token with everything that Core 3.1.3.7 asks for."""
        settings = self._settings
        try:
            header = jws.extract_compact(token.encode()).headers()
            claims = self._signed(token, header)
            jwt.JWTClaimsRegistry(
                now=int(self._now()),
                leeway=LEEWAY_SECONDS,
                iss={"essential": True, "value": settings.issuer},
                aud={"essential": True, "value": settings.client_id},
                sub={"essential": True},
                exp={"essential": True},
                iat={"essential": True},
                nonce={"essential": True, "value": nonce},
            ).validate(claims)
        except ClaimError as error:
            raise NotAccepted(f"the claim {error.claim} of the ID token is wrong") from error
        except (JoseError, ValueError) as error:
            raise NotAccepted(f"the ID token is wrong ({type(error).__name__})") from error
        audiences = claims["aud"] if isinstance(claims["aud"], list) else [claims["aud"]]
        party = claims.get("azp", settings.client_id if len(audiences) == 1 else None)
        if party != settings.client_id:
            raise NotAccepted("the claim azp of the ID token is wrong")
        return claims

    def _signed(self, token: str, header: Claims) -> dict[str, Any]:
        """The claims, where a key of the provider has signed them; it may have a new one."""
        failure: JoseError | None = None
        for is_fresh in (False, True):
            for key in self._signers(is_fresh=is_fresh):
                if header.get("kid") in (None, key.kid):
                    try:
                        return jwt.decode(token, key, algorithms=ALGORITHMS).claims
                    except JoseError as error:
                        failure = error
        raise NotAccepted("no key of the provider has signed the ID token") from failure

    def _signers(self, *, is_fresh: bool) -> Sequence[Key]:
        kept = self._keys
        if kept is None or is_fresh or not 0 <= self._now() - kept[0] < KEPT_SECONDS:
            document = self._ask(self._known().keys)
            kept = self._keys = self._now(), tuple(_keys(document.get("keys")))
        return kept[1]

    def _ask(
        self,
        url: str,
        fields: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Claims:
        """The JSON object of an answer; a redirection is none."""
        parts = urlsplit(url)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        sent = {"Accept": "application/json", "User-Agent": "midslice", **(headers or {})}
        body = None
        if fields is not None:
            body = urlencode(fields).encode()
            sent["Content-Type"] = "application/x-www-form-urlencoded"
        try:
            with closing(self._connection(url)) as connection:
                connection.request("POST" if body is not None else "GET", path, body, sent)
                status, text = _answer(connection)
            document = json.loads(text)
        except (OSError, HTTPException, ValueError, RecursionError) as error:
            raise NotAnswering(f"the log-in provider {parts.hostname} does not answer") from error
        if status == 400 and isinstance(document, dict):  # RFC 6749 5.2
            why = _error_code(document.get("error"))
            raise NotAccepted(f"the log-in provider refuses the log-in ({why})")
        if status != 200 or not isinstance(document, dict):
            raise NotAnswering(f"the log-in provider {parts.hostname} answers {status}")
        return document

    def _connection(self, url: str) -> HTTPConnection:
        parts = urlsplit(url)
        assert parts.hostname is not None
        if parts.scheme == "http":
            return HTTPConnection(parts.hostname, parts.port, timeout=SECONDS)
        context = ssl.create_default_context(cafile=self._settings.authorities)
        if self._settings.crl is not None:
            look_up(context, self._settings.crl)
        return HTTPSConnection(parts.hostname, parts.port, timeout=SECONDS, context=context)


def _answer(connection: HTTPConnection) -> tuple[int, bytes]:
    """Status and body, in the time that both have together."""
    deadline = time.monotonic() + SECONDS
    answer, text = connection.getresponse(), b""
    while part := answer.read1(1 << 16):
        text += part
        if len(text) > MOST_BYTES or time.monotonic() > deadline:
            raise TimeoutError("the answer does not end")
    return answer.status, text


def _error_code(given: object) -> str:
    return given if isinstance(given, str) and ERROR_CODE.fullmatch(given) else "without a reason"


def _keys(entries: object) -> Iterator[Key]:
    """The keys that sign; one of a kind that is not known here makes the others no worse."""
    for entry in entries if isinstance(entries, list) else ():
        if not isinstance(entry, dict) or entry.get("kty") not in KEY_TYPES:
            continue
        if entry.get("use", "sig") != "sig":
            continue
        try:
            yield JWKRegistry.import_key(entry)
        except (JoseError, ValueError):
            continue


def _claim(claims: Claims, name: str) -> object:
    """The value of a claim, by its name or by a path with dots as `realm_access.roles`."""
    if name in claims:  # a name may be an address, with dots of its own
        return claims[name]
    value: object = claims
    for part in name.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value


def _values(claims: Claims, name: str) -> tuple[str, ...]:
    value = _claim(claims, name)
    values = value if isinstance(value, list) else [value]
    return tuple(one for one in values if isinstance(one, str))


def _with_query(url: str, query: Mapping[str, str]) -> str:
    return f"{url}{'&' if '?' in url else '?'}{urlencode(query)}"
