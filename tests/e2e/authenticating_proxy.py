"""A server with users and roles, for tests: a TCP proxy in front of the wire server, which has neither.

It is the server's side of SCRAM-SHA-256 (RFC 7677), and refuses every command that the user's role
(:mod:`stores.roles`) does not allow, in MongoDB's words (code 13). Everything else goes through as it is.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import socket
import struct
import threading
from collections import Counter
from contextlib import suppress
from typing import Any

import bson

from stores.roles import FREE, actions_of, allows

OP_MSG, OP_QUERY, OP_REPLY = 2013, 2004, 1
ITERATIONS = 4096
USER_MANAGEMENT = ("rolesInfo", "usersInfo", "createRole", "updateRole", "createUser", "grantRolesToUser")


class AuthenticatingProxy:
    """A proxy on a port of the loopback interface.

    Parameters
    ----------
    server
        ``host:port`` of the wire server.
    users
        Name -> (password, role).

    Attributes
    ----------
    seen
        (role, action, collection) -> how often it was asked for and allowed.
    refused
        (role, command, collection) of what was not allowed.
    bytes_in
        Everything that clients sent.
    """

    def __init__(self, server: str, users: dict[str, tuple[str, str]]) -> None:
        host, _, port = server.partition(":")
        self.upstream, self.users = (host, int(port)), users
        self.seen: Counter[tuple[str, str, str]] = Counter()
        self.refused: list[tuple[str, str, str]] = []
        self.bytes_in = bytearray()
        self._sockets: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def stop(self) -> None:
        """Stop listening and cut every connection: the server is away."""
        self._listener.close()
        for sock in list(self._sockets):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        session = _Session(self.users)
        with suppress(OSError, struct.error), client, socket.create_connection(self.upstream) as server:
            self._sockets |= {client, server}
            while (message := _receive(client)) is not None:
                self.bytes_in += message
                reply = self._answer(message, session)
                if reply is None:
                    server.sendall(message)
                    if message[12:16] == struct.pack("<i", OP_MSG) and message[16] & 2:  # more to come, no reply
                        continue
                    reply = _receive(server)
                    if reply is None:
                        return
                client.sendall(reply)

    def _answer(self, message: bytes, session: _Session) -> bytes | None:
        """Return the proxy's own answer to a message, or None for the server's."""
        command = _command(message)
        if command is None:
            return None
        name = next(iter(command))
        if name in ("saslStart", "saslContinue"):
            return _reply(message, session.authenticate(command))
        if name in FREE or name in USER_MANAGEMENT:  # the wire server has none and says so
            return None
        refusal = self._authorise(name, command, session.role)
        return None if refusal is None else _reply(message, refusal)

    def _authorise(self, name: str, command: dict[str, Any], role: str | None) -> dict[str, Any] | None:
        """Return the error for a command that a role may not give, or None."""
        if role is None:
            return _failure(13, "Unauthorized", f"command {name} requires authentication")
        try:
            _, collection, actions = actions_of(command)
        except ValueError as error:
            self.refused.append((role, name, "unknown to stores.roles"))
            return _failure(59, "CommandNotFound", str(error))
        if command["$db"] == "admin" or any(not allows(role, action, collection) for action in actions):
            self.refused.append((role, name, collection))
            words = f'not authorized on {command["$db"]} to execute command {{ {name}: "{collection}", secret: "x" }}'
            return _failure(13, "Unauthorized", words)
        self.seen.update((role, action, collection) for action in actions)
        return None


class _Session:
    """One connection's conversation: SCRAM-SHA-256 as the server speaks it, and who it turned out to be."""

    def __init__(self, users: dict[str, tuple[str, str]]) -> None:
        self.users = users
        self.role: str | None = None

    def authenticate(self, command: dict[str, Any]) -> dict[str, Any]:
        """Return the reply to saslStart or saslContinue."""
        payload = bytes(command["payload"]).decode()
        if "saslStart" in command:
            if command["mechanism"] != "SCRAM-SHA-256":
                return _failure(334, "MechanismUnavailable", "only SCRAM-SHA-256")
            self.first = payload.split(",", 2)[2]
            fields = dict(part.split("=", 1) for part in self.first.split(","))
            self.user, self.salt = fields["n"], os.urandom(16)
            self.nonce = fields["r"] + base64.b64encode(os.urandom(18)).decode()
            self.challenge = f"r={self.nonce},s={base64.b64encode(self.salt).decode()},i={ITERATIONS}"
            return {"conversationId": 1, "done": False, "payload": self.challenge.encode(), "ok": 1.0}
        if not payload:
            return {"conversationId": 1, "done": True, "payload": b"", "ok": 1.0}
        password, role = self.users.get(self.user, ("", ""))
        without_proof, _, proof = payload.rpartition(",p=")
        salted = hashlib.pbkdf2_hmac("sha256", password.encode(), self.salt, ITERATIONS)
        client_key = _hmac(salted, b"Client Key")
        message = f"{self.first},{self.challenge},{without_proof}".encode()
        signature = _hmac(hashlib.sha256(client_key).digest(), message)
        expected = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
        if not role or not hmac.compare_digest(expected, base64.b64decode(proof)):
            return _failure(18, "AuthenticationFailed", "Authentication failed.")
        self.role = role
        verifier = base64.b64encode(_hmac(_hmac(salted, b"Server Key"), message)).decode()
        return {"conversationId": 1, "done": True, "payload": f"v={verifier}".encode(), "ok": 1.0}


def _hmac(key: bytes, message: bytes) -> bytes:
    return hmac.new(key, message, "sha256").digest()


def _failure(code: int, name: str, text: str) -> dict[str, Any]:
    return {"ok": 0.0, "errmsg": text, "code": code, "codeName": name}


def _receive(sock: socket.socket) -> bytes | None:
    """Return one message of MongoDB's wire protocol, or None at the end."""
    head = _exactly(sock, 4)
    if head is None:
        return None
    rest = _exactly(sock, struct.unpack("<i", head)[0] - 4)
    return None if rest is None else head + rest


def _exactly(sock: socket.socket, size: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < size:
        part = sock.recv(min(size - len(parts), 1 << 20))
        if not part:
            return None
        parts += part
    return bytes(parts)


def _command(message: bytes) -> dict[str, Any] | None:
    """Return the command of an OP_MSG; None for the legacy messages of the first handshake.

    Documents that came beside it are under their name, ``updates`` such as.
    """
    if struct.unpack_from("<i", message, 12)[0] != OP_MSG:
        return None
    offset, end = 20, len(message) - (4 if message[16] & 1 else 0)
    command: dict[str, Any] = {}
    beside: dict[str, Any] = {}
    while offset < end:
        kind, size = message[offset], struct.unpack_from("<i", message, offset + 1)[0]
        section = message[offset + 1 : offset + 1 + size]
        if kind == 0:
            command = bson.decode(section)
        else:
            name, _, documents = section[4:].partition(b"\0")
            beside[name.decode()] = bson.decode_all(documents) if name == b"updates" else []
        offset += 1 + size
    return command | beside


def _reply(message: bytes, document: dict[str, Any]) -> bytes:
    body = struct.pack("<i", 0) + b"\0" + bson.encode(document)
    request = struct.unpack_from("<i", message, 4)[0]
    return struct.pack("<iiii", 16 + len(body), 1, request, OP_MSG) + body
