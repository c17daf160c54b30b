"""A real OpenID Connect provider on this machine: Django OAuth Toolkit, as a process of its own.

`python -m tests.oidc_provider FOLDER PORT CLIENT_REDIRECT` serves it; its rows and its key lie in
the folder, so that it can be stopped and started again.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from urllib.request import urlopen
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.node_process import wait_for
from tests.ports import free_port

CLIENT_ID, CLIENT_SECRET = "midslice", "a secret of the client: 100%"
PASSWORD = "provider's password"
PEOPLE = {
    "vera": ["radiology-reader"],
    "otto": ["radiology-reader", "radiology-operator"],
    "nora": ["cardiology"],
}
KEY, KEY_BITS = "key.pem", 2048
ROOT = Path(__file__).parents[1]


@dataclass
class OidcProvider:
    """A provider with three people, one client, and one key, which may be replaced."""

    folder: Path
    redirect_uri: str
    port: int = field(default_factory=free_port)
    _child: "subprocess.Popen[bytes] | None" = None

    @property
    def issuer(self) -> str:
        return f"http://127.0.0.1:{self.port}/o"

    def start(self) -> "OidcProvider":
        """Start it, with the key that is there, and wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / KEY).exists():
            self.replace_key()
        command = [sys.executable, "-W", "ignore", "-m", "tests.oidc_provider"]
        command += [str(self.folder), str(self.port), self.redirect_uri]
        log = (self.folder / "provider.log").open("ab")
        self._child = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        log.close()
        wait_for("the provider answers", self._answers)
        return self

    def stop(self) -> None:
        """End it; what it knows stays."""
        if self._child is not None:
            self._child.terminate()
            self._child.wait(20)
            self._child = None

    def replace_key(self) -> None:
        """Make another key, for the next start: tokens of the old one are worth nothing then."""
        key = rsa.generate_private_key(public_exponent=65537, key_size=KEY_BITS)
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        (self.folder / KEY).write_bytes(pem)

    def configuration(self, *lines: str) -> str:
        """The table of config.toml for a node at `redirect_uri`."""
        secret = self.folder / "client-secret"
        secret.write_text(CLIENT_SECRET + "\n")
        secret.chmod(0o600)
        values = {
            "issuer": self.issuer,
            "client_id": CLIENT_ID,
            "client_secret_file": str(secret),
            "public_url": self.redirect_uri.partition("/login/")[0],
            "button": "Log in with the hospital's account",
        }
        written = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
        roles = '{ "radiology-reader" = "viewer", "radiology-operator" = "operator" }'
        return "\n".join(["", "[web.oidc]", *written, f"roles = {roles}", *lines, ""])

    def _answers(self) -> bool:
        assert self._child is not None
        if self._child.poll() is not None:
            raise AssertionError((self.folder / "provider.log").read_text())
        try:
            with urlopen(f"{self.issuer}/.well-known/openid-configuration", timeout=5) as answer:
                return bool(json.load(answer)["issuer"] == self.issuer)
        except OSError:
            return False


@contextlib.contextmanager
def oidc_provider(folder: Path, redirect_uri: str) -> Iterator[OidcProvider]:
    """The provider, started; stopped in every case."""
    provider = OidcProvider(folder, redirect_uri)
    try:
        yield provider.start()
    finally:
        provider.stop()


# The program.


def _configure(folder: Path, issuer: str) -> None:
    from django.conf import settings

    settings.configure(
        SECRET_KEY="of the tests",
        ALLOWED_HOSTS=["127.0.0.1"],
        DATABASES={
            "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": folder / "provider.db"}
        },
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
        INSTALLED_APPS=[
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "django.contrib.sessions",
            "oauth2_provider",
        ],
        MIDDLEWARE=[
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.middleware.csrf.CsrfViewMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
        ],
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "OPTIONS": {
                    "context_processors": ["django.template.context_processors.request"],
                    "loaders": [("django.template.loaders.locmem.Loader", TEMPLATES)],
                },
            }
        ],
        LOGIN_URL="/login",
        SESSION_COOKIE_NAME="provider",  # both stand on 127.0.0.1
        CSRF_COOKIE_NAME="provider-csrf",
        USE_TZ=True,
        OAUTH2_PROVIDER={
            "OIDC_ENABLED": True,
            "OIDC_ISS_ENDPOINT": issuer,
            "OIDC_RSA_PRIVATE_KEY": (folder / KEY).read_text(),
            "OIDC_RP_INITIATED_LOGOUT_ENABLED": True,
            "OIDC_RP_INITIATED_LOGOUT_ALWAYS_PROMPT": True,
            "PKCE_REQUIRED": True,
            "SCOPES": {"openid": "who you are", "profile": "your name"},
            "ALLOWED_REDIRECT_URI_SCHEMES": ["http"],
        },
    )


TEMPLATES = {
    "registration/login.html": """<!doctype html><title>The hospital</title><h1>The hospital</h1>
<form method="post">{% csrf_token %}{{ form.as_p }}<button>Sign in</button></form>""",
    "oauth2_provider/logout_confirm.html": """<!doctype html><title>Leave</title>
<form method="post">{% csrf_token %}{% for field in form %}{{ field.as_hidden }}{% endfor %}
<button name="allow" value="true">Yes, log out</button></form>""",
}


def _validator() -> Any:
    """The validator of the toolkit, which adds the claims that Keycloak would."""
    from oauth2_provider.oauth2_validators import OAuth2Validator

    class Validator(OAuth2Validator):  # type: ignore[misc]
        oidc_claim_scope = None

        def get_additional_claims(self, request: Any) -> dict[str, Any]:
            name = request.user.username
            return {"preferred_username": name, "realm_access": {"roles": PEOPLE[name]}}

    return Validator


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Handler(WSGIRequestHandler):
    def address_string(self) -> str:
        return "127.0.0.1"  # no name service


def _fill(redirect_uri: str) -> None:
    from django.contrib.auth.models import User
    from oauth2_provider.models import Application

    for name in PEOPLE:
        User.objects.create_user(name, password=PASSWORD)
    Application.objects.create(
        client_id=CLIENT_ID,
        client_secret=CLIENT_SECRET,
        client_type="confidential",
        authorization_grant_type="authorization-code",
        redirect_uris=redirect_uri,
        post_logout_redirect_uris=redirect_uri.partition("/login/")[0] + "/login",
        algorithm="RS256",
        skip_authorization=True,
    )


def main(folder: str, port: str, redirect_uri: str) -> None:
    """Serve until the process is ended."""
    is_new = not (Path(folder) / "provider.db").exists()
    _configure(Path(folder), f"http://127.0.0.1:{port}/o")
    import django

    django.setup()
    from django.conf import settings
    from django.contrib.auth.views import LoginView
    from django.core.management import call_command
    from django.core.wsgi import get_wsgi_application
    from django.urls import include, path

    settings.OAUTH2_PROVIDER["OAUTH2_VALIDATOR_CLASS"] = _validator()
    settings.ROOT_URLCONF = (
        path("login", LoginView.as_view()),
        path("o/", include("oauth2_provider.urls", namespace="oauth2_provider")),
    )
    if is_new:
        call_command("migrate", verbosity=0)
        _fill(redirect_uri)
    with make_server(
        "127.0.0.1", int(port), get_wsgi_application(), _Server, handler_class=_Handler
    ) as server:
        server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
