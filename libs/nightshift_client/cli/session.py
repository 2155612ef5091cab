"""What every command has: where the plane is, who asks, how to answer, and how errors end it.

Exit status: 0 done; 1 what was asked about failed; 2 usage; 3 refused; 4 unreachable; 130 interrupted.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import sys
import threading
import typing
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from nightshift_client.cli.words import visible, visible_lines
from nightshift_client.errors import PlaneNotFound
from nightshift_client.home import Endpoints, Home, default_home

if TYPE_CHECKING:
    import grpc
    from google.protobuf.message import Message

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_REFUSED = 3
EXIT_UNREACHABLE = 4
EXIT_INTERRUPTED = 130

DEFAULT_TIMEOUT_S = 30.0
# They may change their parts while they are asked.
REPLICAS_ASKED = 3

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the answer as protobuf JSON, streams line by line.")
]
TimeoutOption = Annotated[
    float | None, typer.Option("--timeout", min=0.05, help="Seconds a call may take (30; streams: no limit).")
]
HomeOption = Annotated[Path | None, typer.Option("--home", help="The plane's folder (NIGHTSHIFT_HOME).")]


class CommandFailed(Exception):
    """Ends a command with words for its user.

    Args:
        status: Exit status.
        message: What happened.
        reason: Stable reason, "" without one.
        advice: What to do, "" where there is nothing to say.
        code: gRPC status name, "" where no call was made.
        metadata: Values that belong to the reason.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        reason: str = "",
        advice: str = "",
        code: str = "",
        metadata: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.reason = reason
        self.advice = advice
        self.code = code
        self.metadata = metadata or {}


class Session:
    """One invocation of the command."""

    def __init__(self, *, json_output: bool, timeout_s: float | None, home: Path | None) -> None:
        self.json = json_output
        self.timeout_s = timeout_s
        self.home = Home((home or default_home()).expanduser().absolute())
        self.console = Console(highlight=False, soft_wrap=False, markup=False, emoji=False)
        self.errors = Console(stderr=True, highlight=False, markup=False, emoji=False)
        self._endpoints: Endpoints | None = None
        # By service and address; where a replica told of another one, that one's address by service.
        self._channels: dict[tuple[str, str], grpc.Channel] = {}
        self._leaders: dict[str, str] = {}
        self._lock = threading.Lock()

    @property
    def endpoints(self) -> Endpoints:
        """Where the plane listens.

        Raises:
            CommandFailed: where none runs.
        """
        if self._endpoints is None:
            try:
                self._endpoints = self.home.endpoints()
            except PlaneNotFound as error:
                raise CommandFailed(
                    EXIT_UNREACHABLE,
                    str(error),
                    reason="PLANE_DOWN",
                    advice="Start it with: nightshift up --detach (or name its folder with --home).",
                ) from error
        return self._endpoints

    def address(self, service: str) -> str:
        """Where a service is asked: as endpoints.json says, or as a replica that stands by told.

        Raises:
            CommandFailed: where the service is unknown.
        """
        endpoint = self.endpoints.services.get(service)
        if endpoint is None:
            raise CommandFailed(EXIT_UNREACHABLE, f"this plane has no service {service}", reason="PLANE_DOWN")
        return self._leaders.get(service, endpoint.address)

    def channel(self, service: str) -> grpc.Channel:
        """A channel to a service, as the person who runs this command.

        Raises:
            CommandFailed: where the service or the credential is unknown.
        """
        from nightshift_client.line import open_channel, open_token_channel

        place = (service, self.address(service))
        with self._lock:
            if place in self._channels:
                return self._channels[place]
            if token_file := os.environ.get("NIGHTSHIFT_CLIENT_TOKEN_FILE", ""):
                token = read_token(Path(token_file).expanduser())
                self._channels[place] = open_token_channel(
                    self.endpoints.services[service].token_address or place[1],
                    service,
                    token,
                    self.home.ca_file.read_bytes(),
                )
                return self._channels[place]
            name = os.environ.get("NIGHTSHIFT_CLIENT_PERSON", "") or str(os.getuid())
            try:
                credential = self.home.credential("person", name).read()
            except PlaneNotFound as error:
                raise CommandFailed(
                    EXIT_REFUSED,
                    str(error),
                    reason="IDENTITY_MISSING",
                    advice=f"The plane's owner makes one: nightshift credentials create person {name}",
                ) from error
            self._channels[place] = open_channel(place[1], service, *credential)
            return self._channels[place]

    def follow(self, service: str, asked: str, refused: CommandFailed) -> bool:
        """Whether another replica is to be asked: the one at `asked` stands by and named the leader.

        Nothing was done there, and the other one has to prove that it is the service, so asking it is safe.
        Whoever shows a token is only told: the port for tokens is another one.
        """
        if os.environ.get("NIGHTSHIFT_CLIENT_TOKEN_FILE", ""):
            return False
        leader = refused.metadata.get("leader_address", "") if refused.reason == "STANDBY" else ""
        if not leader or leader == asked:
            return False
        self._leaders[service] = leader
        return True

    def call(
        self,
        service: str,
        method: str,
        request: Message,
        *,
        timeout_s: float | None = None,
        stub: str = "",
    ) -> Any:
        """Calls a unary method of a service; `stub` names a further gRPC service of it.

        Raises:
            CommandFailed: where it is refused or nobody answers.
        """
        import grpc

        from nightshift_client.cli.failures import failure

        for tries_left in reversed(range(REPLICAS_ASKED)):
            asked = self.address(service)
            unary = getattr(_stub(stub or service, self.channel(service)), method)
            try:
                return unary(request, timeout=self.timeout_s or timeout_s or DEFAULT_TIMEOUT_S)
            except grpc.RpcError as error:
                failed = failure(error, service)
                if not tries_left or not self.follow(service, asked, failed):
                    raise failed from error
        raise AssertionError("the last try returns or raises")

    def stream(self, service: str, method: str, request: Message) -> Iterator[Any]:
        """Messages of a server stream.

        Raises:
            CommandFailed: where it is refused or breaks off.
        """
        import grpc

        from nightshift_client.cli.failures import failure

        for tries_left in reversed(range(REPLICAS_ASKED)):
            asked = self.address(service)
            stub = getattr(_stub(service, self.channel(service)), method)
            messages = stub(request, timeout=self.timeout_s)
            try:
                yield from messages
            except grpc.RpcError as error:
                failed = failure(error, service)
                if not tries_left or not self.follow(service, asked, failed):
                    raise failed from error
            else:
                return
            finally:
                messages.cancel()

    def print_json(self, message: Message | dict[str, Any], *, compact: bool = False) -> None:
        """Prints a message (or a composite of messages) as protobuf JSON with proto field names."""
        document = message if isinstance(message, dict) else as_dict(message)
        text = json.dumps(document, ensure_ascii=False, indent=None if compact else 2)
        # Straight out, for a console would wrap the lines; what a terminal would obey is escaped.
        sys.stdout.write(_inert(text) + "\n")
        sys.stdout.flush()

    def show(self, *renderables: Any) -> None:
        """Prints something for people."""
        self.console.print(*renderables)

    def say(self, text: str) -> None:
        """Prints a line for people; anything that a terminal would obey is made visible."""
        words = text.lstrip(" ")
        indent = len(text) - len(words)
        if self.console.is_terminal:
            # Wrapped lines stay below the first.
            self.console.print(Padding(Text(visible(words)), (0, 0, 0, indent)))
        else:
            # Whoever reads from a pipe wants whole lines.
            self.console.print(" " * indent + visible(words), soft_wrap=True)

    def confirm(self, question: str) -> bool:
        """Asks for a yes.

        Raises:
            CommandFailed: where nobody is there to answer.
        """
        if not sys.stdin.isatty():
            raise CommandFailed(
                EXIT_USAGE,
                "nobody is there to confirm",
                advice="Look at it with --dry-run, and pass --yes to go on.",
            )
        return typer.confirm(question)

    @property
    def lively(self) -> bool:
        """Whether somebody looks at a terminal, so that bars and spinners make sense."""
        return self.errors.is_terminal and not self.json

    def close(self) -> None:
        """Closes the channels."""
        for channel in self._channels.values():
            channel.close()
        self._channels.clear()


def command(
    app: typer.Typer, name: str, **settings: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers ``function(session, …)`` as a command with the options that all commands share."""

    def registered(function: Callable[..., Any]) -> Callable[..., Any]:
        hints = typing.get_type_hints(function, include_extras=True)
        own = [
            parameter.replace(annotation=hints[parameter.name])
            for parameter in inspect.signature(function).parameters.values()
            if parameter.name != "session"
        ]
        kind = inspect.Parameter.KEYWORD_ONLY
        shared = [
            inspect.Parameter("json_output", kind, default=False, annotation=JsonOption),
            inspect.Parameter("timeout_s", kind, default=None, annotation=TimeoutOption),
            inspect.Parameter("home", kind, default=None, annotation=HomeOption),
        ]

        @functools.wraps(function)
        def run(*, json_output: bool, timeout_s: float | None, home: Path | None, **values: Any) -> None:
            session = Session(json_output=json_output, timeout_s=timeout_s, home=home)
            try:
                function(session, **values)
            except CommandFailed as error:
                _end(session, error)
            except BrokenPipeError:
                raise
            except OSError as error:
                # A file that the user named, most likely: the system's own words say it best.
                _end(session, CommandFailed(EXIT_FAILED, str(error), reason="SYSTEM_ERROR"))
            except KeyboardInterrupt:
                raise typer.Exit(EXIT_INTERRUPTED) from None
            finally:
                session.close()

        keyword_only = [parameter.replace(kind=kind) for parameter in own]
        run.__signature__ = inspect.Signature([*keyword_only, *shared])  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in [*keyword_only, *shared]}
        # typer reads the hints of what is wrapped unless told otherwise.
        del run.__wrapped__
        app.command(name, **settings)(run)
        return function

    return registered


def read_token(path: Path) -> str:
    """The local token in a file.

    Raises:
        CommandFailed: others may read the file.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_mode & 0o077:
            raise CommandFailed(
                EXIT_REFUSED,
                f"others may read the token in {path}",
                reason="TOKEN_FILE_OPEN",
                advice=f"chmod 600 {path}; if somebody may have read it: nightshift tokens revoke",
            )
        return file.read(4096).decode("ascii", "replace").strip()


def as_dict(message: Message) -> dict[str, Any]:
    """Protobuf JSON with proto field names."""
    from google.protobuf import json_format

    document: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return document


def named(collection: str, value: str) -> str:
    """A resource name from a name or a bare id."""
    return value if "/" in value else f"{collection}/{value}"


def request_id() -> str:
    """A new key of idempotency."""
    return str(uuid.uuid4())


def _end(session: Session, error: CommandFailed) -> NoReturn:
    if session.json:
        document = {
            "error": {
                "code": error.code,
                "reason": error.reason,
                "message": error.message,
                "metadata": error.metadata,
                "advice": error.advice,
            }
        }
        sys.stderr.write(_inert(json.dumps(document, ensure_ascii=False)) + "\n")
    else:
        head = f"{error.reason}: " if error.reason else ""
        session.errors.print(visible_lines(f"nightshift: {head}{error.message}"), soft_wrap=True)
        if error.advice:
            session.errors.print(visible(error.advice), soft_wrap=True)
    raise typer.Exit(error.status)


def _inert(text: str) -> str:
    """JSON text in which nothing steers a terminal: such characters stand as JSON escapes."""
    return "".join(
        character if character == "\n" or visible(character) == character else _escape(character)
        for character in text
    )


def _escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(
        f"\\u{int.from_bytes(units[index : index + 2], 'big'):04x}" for index in range(0, len(units), 2)
    )


def _stub(service: str, channel: grpc.Channel) -> Any:
    if service == "monitor":
        from nightshift.monitor.v1 import monitor_service_pb2_grpc

        return monitor_service_pb2_grpc.MonitorServiceStub(channel)
    if service == "experience":
        from nightshift.experience.v1 import experience_service_pb2_grpc

        return experience_service_pb2_grpc.ExperienceServiceStub(channel)
    if service == "skills":
        from nightshift.skills.v1 import skills_service_pb2_grpc

        return skills_service_pb2_grpc.SkillsServiceStub(channel)
    if service == "AutonomyService":
        from nightshift.skills.v1 import autonomy_service_pb2_grpc

        return autonomy_service_pb2_grpc.AutonomyServiceStub(channel)
    if service == "TokensService":
        from nightshift.skills.v1 import tokens_service_pb2_grpc

        return tokens_service_pb2_grpc.TokensServiceStub(channel)
    if service == "lab":
        from nightshift.lab.v1 import lab_service_pb2_grpc

        return lab_service_pb2_grpc.LabServiceStub(channel)
    from nightshift.trainer.v1 import trainer_service_pb2_grpc

    return trainer_service_pb2_grpc.TrainerServiceStub(channel)
