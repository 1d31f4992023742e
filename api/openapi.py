"""The API's description of itself, in OpenAPI 3.1: `GET /openapi.json`, and `GET /docs` for people.

It is put together from what is there anyway: the routes, the views' docstrings, the types that requests are read with, those of
the answers (`api.records`), the table of errors and the list of what needs no key. No library does that for views that read their
requests themselves; pydantic makes the schemas, and the rest is a dictionary. A view adds what cannot be seen otherwise:

    ThingId = Annotated[str, Field(description="As its record tells it.")]

    class PageQuery(TypedDict, total=False):            # `Query(request.args, PageQuery.__annotations__)` in the view
        limit: Annotated[int, Field(ge=1, le=100)]

    @views.get("/v1/things/<thing_id>")
    @describes({200: Answer("The thing.", Thing, headers={"ETag": str})}, query=(PageQuery,), errors=(ThingNotFound,))
    def show(thing_id: ThingId) -> Response:
        '''See a thing.

        The first line is the summary, the rest the description.
        '''

`Thing` is a TypedDict, dataclass or pydantic model, or any type. What has no JSON body names its media types:
`Answer("The vectors.", {"application/x-npy": bytes})`. A request's bodies stand likewise in
`bodies={"application/json": ThingBody}`, with `examples` in the type, which a test sends. A limit that is a setting is named with
`limited`, and described with its value. Added here are the answers that any request may get (400, 401, 414, 429, 431, 500, 503),
common headers, and what needs a key (`api.access.OPEN`). `tests/unit/test_openapi.py` fails when a route is not described.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from inspect import getdoc
from typing import Annotated, Any, TypeVar, get_type_hints

from flask import Flask
from pydantic import Field, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema
from werkzeug.exceptions import HTTPException, RequestHeaderFieldsTooLarge, RequestURITooLarge
from werkzeug.routing import Rule

from api.access import OPEN
from api.answers import JSON
from api.errors import kind_of
from api.records import ErrorAnswer
from core.config import Settings
from core.errors import Forbidden, InvalidRequest, LedgerUnavailable, RateLimited, Unauthorized, VectorApiError

AUTOMATIC_METHODS = {"HEAD", "OPTIONS"}
"""Flask answers these by itself wherever there is a GET, or anything."""

LIMITED = "x-limited"
KEY = "key"

Error = type[VectorApiError] | type[HTTPException]
View = TypeVar("View", bound=Callable[..., Any])

ANYWHERE: tuple[Error, ...] = (InvalidRequest, RequestURITooLarge, RequestHeaderFieldsTooLarge, VectorApiError)
BEHIND_KEYS: tuple[Error, ...] = (Unauthorized, Forbidden, RateLimited, LedgerUnavailable)

MEANINGS = {
    400: "The request cannot be done; `param` names what is wrong with it.",
    401: "The API key is missing or unknown.",
    403: "The API key may only look at figures.",
    404: "It is not there, or is another tenant's.",
    406: "`Accept` allows none of the formats.",
    408: "The body stopped coming.",
    409: "It cannot be done in the present state.",
    413: "The body is too large.",
    414: "The first line of the request is too long.",
    415: "The body's type or encoding is not taken.",
    416: "The part that is asked for begins behind the end.",
    429: "Too much waits, or was sent in a minute; try again after `Retry-After` seconds.",
    431: "The header is too large.",
    500: "An error of the service itself.",
    503: "Redis or the result store cannot be reached; try again after `Retry-After` seconds.",
}


@dataclass(frozen=True)
class Answer:
    """A success. `content` is the type of its JSON, or types by media type, or None for no body.

    A header whose type allows None may be missing.
    """

    description: str
    content: Any = None
    headers: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Operation:
    answers: Mapping[int, Answer]
    query: Sequence[Any] = ()
    headers: Mapping[str, Any] = field(default_factory=dict)
    bodies: Mapping[str, Any] = field(default_factory=dict)
    errors: Sequence[Error] = ()


_operations: dict[Any, Operation] = {}
"""By view function."""


def describes(
    answers: Mapping[int, Answer],
    *,
    query: Sequence[Any] = (),
    headers: Mapping[str, Any] | None = None,
    bodies: Mapping[str, Any] | None = None,
    errors: Sequence[Error] = (),
) -> Callable[[View], View]:
    """Describes a view; see the module. It stands right below the route.

    Args:
        answers: the successes, by status.
        query: types whose fields are the parameters of the query.
        headers: types of the request's headers.
        bodies: types of the request's body, by media type.
        errors: what the view raises beside what any view may raise.
    """

    def describe(view: View) -> View:
        _operations[view] = Operation(answers, query, headers or {}, bodies or {}, errors)
        return view

    return describe


def limited(**settings: str) -> dict[str, Any]:
    """For `Field(json_schema_extra=…)`: JSON schema's keywords whose values are settings, such as `maximum="max_ttl_seconds"`."""
    return {LIMITED: settings}


def document(app: Flask, settings: Settings) -> dict[str, Any]:
    """The OpenAPI document of all views that are described."""
    schemas, errors = _Schemas(), _ErrorAnswers()
    paths: dict[str, dict[str, Any]] = {}
    for rule, view in _routes(app):
        if operation := _operations.get(view):
            described = _operation(rule, view, operation, schemas, errors)
            methods = (rule.methods or set()) - AUTOMATIC_METHODS
            paths.setdefault(path_of(rule), {}).update({method.lower(): described for method in methods})
    key = {KEY: list[str]()}
    found = {
        "openapi": "3.1.0",
        "info": {"title": "vector-api", "version": "1", "description": _about(settings)},
        "servers": [{"url": "/"}],
        "security": [key] if settings.api_keys_file else [{}, key],
        "paths": paths,
        "components": {
            "responses": errors.components(schemas),
            "schemas": dict(sorted(schemas.components.items())),
            "headers": _common_headers(schemas),
            "securitySchemes": {KEY: {"type": "http", "scheme": "bearer", "description": "An API key: `make key NAME=…`."}},
        },
    }
    limits: dict[str, Any] = _with_limits(found, settings)
    return limits


def _about(settings: Settings) -> str:
    keys = "A key is needed." if settings.api_keys_file else "No key is needed here."
    return (
        "Turns texts into embedding vectors as durable background jobs: post texts, poll the job, read the vectors. "
        f"{keys} All errors have one shape. HEAD and OPTIONS are answered, too. What is no HTTP is answered with 400 or 501."
    )


# Operations -----------------------------------------------------------------------------------------------------------


def _routes(app: Flask) -> list[tuple[Rule, Any]]:
    """In the order of their views' registration."""
    order = {endpoint: n for n, endpoint in enumerate(app.view_functions)}
    return [
        (rule, app.view_functions[rule.endpoint]) for rule in sorted(app.url_map.iter_rules(), key=lambda r: order[r.endpoint])
    ]


def path_of(rule: Rule) -> str:
    """`/v1/jobs/<job_id>` as `/v1/jobs/{job_id}`."""
    return re.sub(r"<(?:[^:<>]+:)?([^<>]+)>", r"{\1}", rule.rule)


def _operation(rule: Rule, view: Any, operation: Operation, schemas: "_Schemas", errors: "_ErrorAnswers") -> dict[str, Any]:
    summary, _, description = (getdoc(view) or rule.endpoint).partition("\n")
    is_open = rule.endpoint in OPEN
    raised = (*ANYWHERE, *(() if is_open else BEHIND_KEYS), *operation.errors)
    successes = {str(status): _answer(answer, schemas) for status, answer in operation.answers.items()}
    found: dict[str, Any] = {
        "operationId": rule.endpoint.replace(".", "_"),
        "tags": [rule.endpoint.partition(".")[0]],
        "summary": summary.rstrip("."),
        "parameters": _parameters(rule, view, operation, schemas),
        "responses": successes | errors.of(raised),
    }
    if description.strip():
        found["description"] = description.strip()
    if is_open:
        found["security"] = []
    if operation.bodies:
        found["requestBody"] = {"required": True, "content": _content(operation.bodies, schemas, "validation")}
    return found


def _parameters(rule: Rule, view: Any, operation: Operation, schemas: "_Schemas") -> list[dict[str, Any]]:
    hints = get_type_hints(view, include_extras=True)
    found = [_parameter(name, "path", schemas.of(hints[name], "validation"), required=True) for name in rule.arguments]
    for kind in operation.query:
        properties = schemas.properties(kind)
        found += [_parameter(name, "query", schema, required=False) for name, schema in properties.items()]
    for name, kind in operation.headers.items():
        found.append(_parameter(name, "header", schemas.of(kind, "validation"), required=False))
    return found


def _parameter(name: str, place: str, schema: dict[str, Any], *, required: bool) -> dict[str, Any]:
    schema = _without_null(schema)
    found: dict[str, Any] = {"name": name, "in": place, "required": required}
    if description := schema.pop("description", None):
        found["description"] = description
    as_json = schema.get("type") == "object"
    return found | ({"content": {JSON: {"schema": schema}}} if as_json else {"schema": schema})


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A query or a header can leave a value out, but not say null."""
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    rest = {name: value for name, value in schema.items() if name != "anyOf" and (name, value) != ("default", None)}
    if not kinds:
        return rest
    return rest | (kinds[0] if len(kinds) == 1 else {"anyOf": kinds})


def _answer(answer: Answer, schemas: "_Schemas") -> dict[str, Any]:
    headers = {name: _header(kind, schemas) for name, kind in answer.headers.items()}
    found: dict[str, Any] = {"description": answer.description, "headers": _references(COMMON_HEADERS) | headers}
    if answer.content is not None:
        content = answer.content if isinstance(answer.content, Mapping) else {JSON: answer.content}
        found["content"] = _content(content, schemas, "serialization")
    return found


def _content(kinds: Mapping[str, Any], schemas: "_Schemas", mode: Any) -> dict[str, Any]:
    return {media_type: {} if kind is bytes else {"schema": schemas.of(kind, mode)} for media_type, kind in kinds.items()}


class _ErrorAnswers:
    """The answers that are errors, one component for each status, with the codes that some operation may answer with."""

    def __init__(self) -> None:
        self._codes: dict[int, list[str]] = {}
        self._waits: set[int] = set()

    def of(self, errors: Iterable[Error]) -> dict[str, Any]:
        """References to the errors' answers, by status."""
        found = set()
        for error in errors:
            status, code, tells_when = _facts(error)
            found.add(status)
            codes = self._codes.setdefault(status, [])
            if code not in codes:
                codes.append(code)
            if tells_when:
                self._waits.add(status)
        return {str(status): {"$ref": f"#/components/responses/{status}"} for status in sorted(found)}

    def components(self, schemas: "_Schemas") -> dict[str, Any]:
        return {str(status): self._component(status, schemas) for status in sorted(self._codes)}

    def _component(self, status: int, schemas: "_Schemas") -> dict[str, Any]:
        codes = ", ".join(f"`{code}`" for code in self._codes[status])
        return {
            "description": f"{MEANINGS.get(status, HTTPStatus(status).phrase)} Codes: {codes}.",
            "headers": _references([*COMMON_HEADERS, *self._further_headers(status)]),
            "content": {JSON: {"schema": schemas.of(ErrorAnswer)}},
        }

    def _further_headers(self, status: int) -> list[str]:
        challenge = ["WWW-Authenticate"] if status == HTTPStatus.UNAUTHORIZED else []
        return [*challenge, "Retry-After" if status in self._waits else "x-should-retry"]


def _facts(error: Error) -> tuple[int, str, bool]:
    """Status, code, and whether the answer tells when to try again."""
    if issubclass(error, HTTPException):
        status = error.code or 500
        return status, HTTPStatus(status).phrase.lower().replace(" ", "_"), False
    kind = kind_of(error)
    return kind.status, error.code, kind.retry_after_seconds is not None


# Headers --------------------------------------------------------------------------------------------------------------

RATE_LIMITS = tuple(
    f"x-ratelimit-{figure}-{kind}" for kind in ("requests", "inputs") for figure in ("limit", "remaining", "reset")
)
COMMON_HEADERS = ("x-request-id", *RATE_LIMITS)


def _common_headers(schemas: "_Schemas") -> dict[str, Any]:
    rates = {
        "limit": Annotated[int | None, Field(description="What a tenant may use in a minute, where that is limited.")],
        "remaining": Annotated[int | None, Field(description="What is left of it.")],
        "reset": Annotated[str | None, Field(description="When it is whole again, such as `6m0s`.")],
    }
    kinds = {
        "x-request-id": Annotated[str, Field(description="The request's name in the log: the one that was sent, or a new one.")],
        "Retry-After": Annotated[int | None, Field(description="Seconds after which trying again makes sense.", ge=1)],
        "x-should-retry": Annotated[str | None, Field(description="`false`: the same request will be refused again.")],
        "WWW-Authenticate": Annotated[str, Field(description="`Bearer`")],
    } | {name: rates[name.split("-")[2]] for name in RATE_LIMITS}
    return {name: _header(kind, schemas) for name, kind in kinds.items()}


def _header(kind: Any, schemas: "_Schemas") -> dict[str, Any]:
    schema = schemas.of(kind, "serialization")
    optional = {"type": "null"} in schema.get("anyOf", ())
    schema = _without_null(schema)
    description = schema.pop("description", None)
    return ({"description": description} if description else {}) | {"required": not optional, "schema": schema}


def _references(names: Iterable[str]) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


# Schemas --------------------------------------------------------------------------------------------------------------


class _Generator(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:
        return False  # pydantic would repeat each field's name


class _Schemas:
    """JSON schemas of types; those with a name are in `components`, once."""

    def __init__(self) -> None:
        self.components: dict[str, dict[str, Any]] = {}

    def of(self, kind: Any, mode: Any = "serialization") -> dict[str, Any]:
        """The type's schema, or a reference to it."""
        schemas, definitions = TypeAdapter.json_schemas(
            [(0, mode, TypeAdapter(kind))], ref_template="#/components/schemas/{model}", schema_generator=_Generator
        )
        for name, schema in definitions.get("$defs", {}).items():
            if self.components.setdefault(name, schema) != schema:
                raise ValueError(f"two types of the API's description have the name {name}")
        return dict(schemas[0, mode])

    def properties(self, kind: Any) -> dict[str, dict[str, Any]]:
        """The schemas of the type's fields."""
        apart = _Schemas()
        name = apart.of(kind, "validation")["$ref"].rpartition("/")[2]
        found: dict[str, dict[str, Any]] = apart.components.pop(name)["properties"]
        self.components |= apart.components
        return found


def _with_limits(part: Any, settings: Settings) -> Any:
    """The same, with the values of the settings that `limited` names."""
    if isinstance(part, list):
        return [_with_limits(item, settings) for item in part]
    if not isinstance(part, dict):
        return part
    limits = {keyword: getattr(settings, name) for keyword, name in part.get(LIMITED, {}).items()}
    return {name: _with_limits(value, settings) for name, value in part.items() if name != LIMITED} | limits
