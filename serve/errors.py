"""One tree of errors for the whole system.

    TenonError
    ├── InputError                  what the caller gave is wrong
    │   ├── ConfigError             settings, options
    │   ├── RecipeError             a recipe
    │   ├── DataError               a data file or a row of it
    │   ├── BaseModelError          the base model's folder or id
    │   ├── AdapterRejected         an adapter's files
    │   ├── SourceError             where an adapter is said to be
    │   └── BadRequest              a request to the gateway
    │       ├── RequestTooLarge     its body is longer than the gateway reads
    │       ├── RequestTimeout      its body did not arrive in time
    │       ├── UnsupportedContent  its body is not JSON
    │       ├── UnknownField        it has a field that its endpoint does not know
    │       └── OutsideLimits       a sampling field lies outside the limits of its model
    ├── InvalidKey                  a request without a valid API key
    ├── MissingScope                a key that may not do such things
    ├── RateLimited                 a key's limit per minute, or of requests at once
    ├── QuotaUsedUp                 a key's tokens of the month
    ├── NotFound
    │   ├── ModelNotFound           a request names no model we serve
    │   ├── RouteNotSupported       the engine behind the model lacks this endpoint
    │   ├── VersionNotFound         no such ``name@vN``
    │   ├── RunNotFound
    │   └── KeyNotFound             no such API key
    ├── Forbidden                   who asks may not do this
    ├── Conflict
    │   ├── PortInUse
    │   ├── AlreadyUp
    │   └── VersionInUse            an alias or a rollback still needs it
    ├── Unavailable
    │   ├── NotUp                   the stack does not run
    │   ├── EngineUnavailable       the engine is down or restarting
    │   ├── EngineFailed            the engine answers, but with an error of its own
    │   ├── Overloaded              every place is taken, or a request waited too long for one
    │   ├── AdapterNotReady         the version exists, but the engine does not hold it
    │   ├── EngineStartFailed
    │   ├── AdapterLoadFailed       the engine refused an adapter
    │   ├── SilentAdapter           the engine says loaded, but answers as the base
    │   ├── MistakenAdapter         the engine says loaded, but answers as another adapter
    │   └── SourceUnavailable       an adapter's source does not answer, or breaks off
    ├── TrainingFailed
    ├── GateRefused                 the verdict does not allow this version to answer users
    └── StorageError                disk full, read-only, corrupt

Every class carries the HTTP status and the stable ``code`` that clients see, and the exit code of the
command line. A message says what was wrong and where; ``hint`` says what to do about it.
"""


class TenonError(Exception):
    """Something went wrong that we can name; ``message`` says what and where, ``hint`` what to do."""

    status = 500
    code = "internal_error"
    type = "server_error"
    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class InputError(TenonError):
    """What the caller gave is wrong."""

    status = 400
    code = "invalid_input"
    type = "invalid_request_error"
    exit_code = 2


class ConfigError(InputError):
    """A setting or an option is wrong."""

    code = "invalid_config"


class RecipeError(InputError):
    """A recipe does not describe a run; the message lists every problem at once."""

    code = "invalid_recipe"


class DataError(InputError):
    """A data file, or a row of it, cannot be used."""

    code = "invalid_data"


class BaseModelError(InputError):
    """The base model's folder or hub id cannot be used."""

    code = "invalid_base"


class AdapterRejected(InputError):
    """An adapter's files are not ones that the engine could serve safely."""

    code = "adapter_rejected"


class SourceError(InputError):
    """The source of an adapter is misspelt, does not exist, or is one that we do not fetch from."""

    code = "invalid_source"


class BadRequest(InputError):
    """A request to the gateway is malformed; ``param`` names the field."""

    code = "invalid_request"

    def __init__(self, message: str, hint: str = "", *, param: str | None = None) -> None:
        super().__init__(message, hint)
        self.param = param


class RequestTooLarge(BadRequest):
    """The body of a request is longer than the gateway reads."""

    status = 413
    code = "request_too_large"


class RequestTimeout(BadRequest):
    """The body of a request did not arrive in time."""

    status = 408
    code = "request_timeout"


class UnsupportedContent(BadRequest):
    """The body of a request is declared to be something other than JSON."""

    status = 415
    code = "unsupported_content"


class UnknownField(BadRequest):
    """A request has a field that its endpoint does not know."""

    code = "unknown_field"


class OutsideLimits(BadRequest):
    """A sampling field of a request lies outside the limits that its model allows."""

    code = "outside_limits"


class InvalidKey(TenonError):
    """A request has no API key, or not one that is valid; which of the two is all that it says."""

    status = 401
    code = "invalid_api_key"
    type = "invalid_request_error"
    exit_code = 2


class MissingScope(TenonError):
    """The API key of a request may not do what it asks for."""

    status = 403
    code = "missing_scope"
    type = "invalid_request_error"
    exit_code = 2


class RateLimited(TenonError):
    """The API key has reached a limit; it may try again after ``retry_after`` seconds.

    ``kind`` says of what, in the field where OpenAI says so: ``requests`` or ``tokens``.
    """

    status = 429
    code = "rate_limit_exceeded"
    exit_code = 5

    def __init__(self, message: str, hint: str = "", *, kind: str = "requests", retry_after: int = 1) -> None:
        super().__init__(message, hint)
        self.type = kind
        self.retry_after = retry_after


class QuotaUsedUp(TenonError):
    """The API key has used its tokens of the month; it may try again after ``retry_after`` seconds."""

    status = 429
    code = "insufficient_quota"
    type = "insufficient_quota"
    exit_code = 5

    def __init__(self, message: str, hint: str = "", *, retry_after: int = 1) -> None:
        super().__init__(message, hint)
        self.retry_after = retry_after


class NotFound(TenonError):
    """What was named does not exist."""

    status = 404
    code = "not_found"
    type = "invalid_request_error"
    exit_code = 2


class ModelNotFound(NotFound):
    """A request names no model that is served here."""

    code = "model_not_found"


class RouteNotSupported(NotFound):
    """The engine behind the model does not have this endpoint."""

    code = "route_not_supported"


class VersionNotFound(NotFound):
    """No such ``name@vN`` is registered."""

    code = "version_not_found"


class RunNotFound(NotFound):
    """No such run is recorded."""

    code = "run_not_found"


class KeyNotFound(NotFound):
    """No such API key was created, or it is revoked."""

    code = "key_not_found"


class Forbidden(TenonError):
    """Whoever asks is known, but may not do this."""

    status = 403
    code = "forbidden"
    type = "invalid_request_error"
    exit_code = 2


class Conflict(TenonError):
    """The request is fine but the present state does not allow it."""

    status = 409
    code = "conflict"
    type = "invalid_request_error"
    exit_code = 4


class PortInUse(Conflict):
    """Another process listens on the port."""

    code = "port_in_use"


class AlreadyUp(Conflict):
    """The stack of this home runs already."""

    code = "already_up"


class VersionInUse(Conflict):
    """An alias or a rollback still needs this version."""

    code = "version_in_use"


class Unavailable(TenonError):
    """Something that must run does not."""

    status = 503
    code = "unavailable"
    exit_code = 5


class NotUp(Unavailable):
    """The stack does not run."""

    code = "not_up"


class EngineUnavailable(Unavailable):
    """The engine is down or restarting; the request can be tried again."""

    code = "engine_unavailable"


class EngineFailed(Unavailable):
    """The engine answers, but with an error that is not the client's doing."""

    status = 502
    code = "engine_failed"


class Overloaded(Unavailable):
    """Every place in the queue is taken, or one did not become free in time; try after ``retry_after`` seconds."""

    code = "overloaded"

    def __init__(self, message: str, hint: str = "", *, retry_after: int = 1) -> None:
        super().__init__(message, hint)
        self.retry_after = retry_after


class AdapterNotReady(Unavailable):
    """The version exists, but the engine does not hold it at this moment."""

    code = "adapter_not_ready"


class EngineStartFailed(Unavailable):
    """The engine ended before it was ready."""

    code = "engine_start_failed"


class AdapterLoadFailed(Unavailable):
    """The engine refused an adapter; the message holds its own words."""

    code = "adapter_load_failed"


class SilentAdapter(AdapterLoadFailed):
    """The engine says that the adapter is loaded, but answers exactly as the base does."""

    code = "silent_adapter"


class MistakenAdapter(AdapterLoadFailed):
    """The engine says that the adapter is loaded, but answers as another one does, or not as it did before."""

    code = "mistaken_adapter"


class SourceUnavailable(Unavailable):
    """The source of an adapter did not answer, or broke off the download."""

    code = "source_unavailable"


class TrainingFailed(TenonError):
    """A training run ended without an adapter."""

    code = "training_failed"
    exit_code = 6


class GateRefused(TenonError):
    """The verdict does not allow this version to answer users."""

    status = 409
    code = "gate_refused"
    exit_code = 3


class StorageError(TenonError):
    """A file or the database could not be written or read: disk full, read-only, corrupt."""

    status = 503
    code = "storage_error"
    exit_code = 7
