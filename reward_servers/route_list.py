"""The routes of the door as a page, from their OpenAPI description; nothing is fetched from elsewhere."""

from __future__ import annotations

from html import escape
from typing import Any

Json = dict[str, Any]
STYLE = (
    ":root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:50rem;margin:2rem auto;"
    "padding:0 1rem}td,th{text-align:left;padding:.2rem 1rem .2rem 0;vertical-align:top}"
    "code{font-size:.95em}section{overflow-x:auto}"
)


def route_list(openapi: Json) -> str:
    """HTML: each route with what it takes and what it answers."""
    parts = [
        _route(openapi, path, method, operation)
        for path, methods in openapi["paths"].items()
        for method, operation in methods.items()
    ]
    title = escape(openapi["info"]["title"])
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>'
        f"<h1>{title}</h1><p>{escape(openapi['info']['description'])} For programs: "
        f'<a href="openapi.json">openapi.json</a>.</p>{"".join(parts)}</body></html>'
    )


def _route(openapi: Json, path: str, method: str, operation: Json) -> str:
    token = " · needs the token" if operation.get("security") else ""
    takes = "".join(
        _fields(openapi, body) for body in operation.get("requestBody", {}).get("content", {}).values()
    )
    answers = "".join(
        f"<tr><td>{status}</td><td>{escape(answer['description'])}</td></tr>"
        for status, answer in operation["responses"].items()
    )
    return (
        f"<section><h2><code>{method.upper()} {escape(path)}</code></h2>"
        f"<p>{escape(operation['summary'])}{token}</p>{takes}"
        f"<table><tr><th>answer</th><th></th></tr>{answers}</table></section>"
    )


def _fields(openapi: Json, body: Json) -> str:
    """The fields of a form."""
    schema = openapi["components"]["schemas"][body["schema"]["$ref"].rpartition("/")[2]]
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(field.get('description', ''))}"
        f"{' (required)' if name in schema.get('required', ()) else ''}</td></tr>"
        for name, field in schema["properties"].items()
    )
    return f"<table><tr><th>field</th><th></th></tr>{rows}</table>"
