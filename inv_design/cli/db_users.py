"""`inv-design db users`: the roles of a shared database, as commands for mongosh or applied."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from inv_design.cli import render
from inv_design.cli.options import Settings, database_options, json_option

PASSWORD_VARIABLE = "INV_DESIGN_NEW_PASSWORD"


@click.command()
@click.argument("users", nargs=-1, metavar="[NAME=ROLE]...")
@click.option("--apply", "apply_them", is_flag=True, help="Create the roles and users on the server.")
@click.option(
    "--password-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help=f"File with the password of a new user; or ${PASSWORD_VARIABLE}, or a prompt.",
)
@database_options
@json_option
@click.pass_obj
def users(settings: Settings, users: tuple[str, ...], apply_them: bool, password_file: Path | None) -> None:
    """Print, or apply, the roles of readers, workers and curators.

    ROLE is reader, worker or curator. Without --apply the commands are for mongosh, which asks for the passwords.
    """
    wanted = parse_users(users)
    if apply_them:
        done = _apply(settings, wanted, password_file)
        if settings.as_json:
            render.json_document(done)
        else:
            for item in done:
                who = f"user {item['user']} as {item['role']}" if "user" in item else f"role {item['name']}"
                render.say(f"{item['done']} {who}")
        return
    database = database_name(settings)
    record = described(database, wanted)
    if settings.as_json:
        render.json_document(record)
    else:
        print("\n".join(script(record)))


def parse_users(texts: tuple[str, ...]) -> dict[str, str]:
    """Return user -> role from ``NAME=ROLE``.

    Raises
    ------
    click.BadParameter
        If a text has another form or there is no such role; a password in it is not repeated.
    """
    from stores.roles import user_document

    wanted = {}
    for text in texts:
        name, _, role = text.partition("=")
        if not name or not role or ":" in name:
            raise click.BadParameter("write NAME=ROLE, such as ada=reader; a password does not belong here")
        try:
            user_document(name, role, "any")
        except ValueError as error:
            raise click.BadParameter(str(error)) from None
        wanted[name] = role
    return wanted


def database_name(settings: Settings) -> str:
    """Return the name of the server's database, without connecting to it.

    Raises
    ------
    ValueError
        If the database is an embedded file, which has no users.
    """
    from stores.connection import DEFAULT_NAME, redact

    uri = settings.database_uri()
    if not uri.startswith("mongodb"):
        raise ValueError(f"{redact(uri)!r} is a file and has no users; its permissions say who may read it")
    return redact(uri).partition("://")[2].partition("/")[2] or DEFAULT_NAME


def described(database: str, users: dict[str, str]) -> dict[str, Any]:
    """Return the roles and users as arguments of ``createRole`` and ``createUser``; no password is in them."""
    from stores.roles import ROLES, role_document, user_document

    return {
        "database": database,
        "roles": [role_document(role, database) for role in ROLES],
        "users": [user_document(name, role, database) for name, role in users.items()],
    }


def script(record: dict[str, Any]) -> list[str]:
    """Return the lines for mongosh, which asks for each password."""
    lines = [f"use({json.dumps(record['database'])})"]
    for role in record["roles"]:
        lines += [f"db.createRole({json.dumps({**role, 'privileges': []})})"]
        lines += [f"db.grantPrivilegesToRole({json.dumps(role['role'])}, ["]
        lines += [f"  {json.dumps(privilege)}," for privilege in role["privileges"]]
        lines += ["])"]
    for user in record["users"]:
        roles = json.dumps(user["roles"])
        lines.append(f"db.createUser({{user: {json.dumps(user['user'])}, pwd: passwordPrompt(), roles: {roles}}})")
    return lines


def _apply(settings: Settings, users: dict[str, str], password_file: Path | None) -> list[dict[str, str]]:
    """Create roles and users with the passwords of a file, the environment or a prompt."""
    from inv_design.cli.database import open_database
    from stores import roles, schema

    passwords = _Passwords(password_file)
    with schema.unchecked(), open_database(settings) as connection:
        return roles.apply(connection, users, passwords)


class _Passwords(dict[str, str]):
    """Name -> password, asked for only when it is needed: known users keep theirs."""

    def __init__(self, file: Path | None) -> None:
        super().__init__()
        self._file = file

    def __missing__(self, name: str) -> str:
        if self._file is not None:
            password = self._file.read_text().strip()
        else:
            password = os.environ.get(PASSWORD_VARIABLE) or click.prompt(
                f"Password of {name}", hide_input=True, confirmation_prompt=True, err=True
            )
        if not password:
            raise ValueError(f"the password of {name} is empty; give another one")
        self[name] = password
        return password
