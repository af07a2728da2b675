"""What the values of `neuron.toml` must look like, as annotations for `settings`, and which keys go together."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from catalogue.toml.addresses import Listen
from catalogue.toml.types import CheckedTable, Name, String, invalid, parsed_from
from catalogue.toml.validate import nearest
from neuron.agent.config.placeholders import PLACEHOLDERS, placeholders_in

__all__ = [
    "DEFAULT_PORTS",
    "ENVIRONMENT_NAME",
    "PORT_RANGE",
    "URL_PATH",
    "PortRange",
    "check_api",
    "check_engine",
    "check_file",
    "check_model",
    "is_loopback",
]

_LARGEST_PORT = 65535
_SMALLEST_PORT = 1024  # below it Linux wants a privilege (ip_unprivileged_port_start)


@dataclass(frozen=True, slots=True)
class PortRange:
    """TCP ports, both ends included."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


DEFAULT_PORTS = PortRange(20000, 20999)

_RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")
_PATH = re.compile(r"/[A-Za-z0-9._~/%?=&-]*")
_NAME_OF_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _port_range(text: str) -> PortRange:
    found = _RANGE.fullmatch(text)
    if found is None:
        raise invalid('must be "first-last"', 'for example "20000-20999"')
    first, last = int(found[1]), int(found[2] or found[1])
    if first > last:
        raise invalid("has its first port above its last")
    if first < _SMALLEST_PORT or last > _LARGEST_PORT:
        raise invalid(f"must lie between {_SMALLEST_PORT} and {_LARGEST_PORT}")
    return PortRange(first, last)


def _url_path(text: str) -> str:
    if _PATH.fullmatch(text) is None:
        raise invalid('must be a path such as "/health"', "begin with /, without the server's address")
    return text


def _environment_name(name: str) -> str:
    if _NAME_OF_VARIABLE.fullmatch(name) is None:
        raise invalid("is not a name of an environment variable", "use letters, digits and _, no digit first")
    return name


PORT_RANGE = parsed_from(String, _port_range)
URL_PATH = parsed_from(String, _url_path)
ENVIRONMENT_NAME = parsed_from(Name, _environment_name)


def is_loopback(listen: Listen) -> bool:
    """Whether only this machine can connect to the address."""
    try:
        return ipaddress.ip_address(listen.host.partition("%")[0]).is_loopback
    except ValueError:
        return listen.host == "localhost" or listen.host.endswith(".localhost")


def check_api(api: CheckedTable) -> None:
    """Refuse an API that other machines reach without a token, and half a TLS configuration."""
    table: Mapping[str, Any] = api.raw
    if api.value is not None and not is_loopback(api.value.listen) and not (api.value.token or api.value.open):
        hint = "set token, or open = true on a network where everybody may load and unload models"
        api.refuse(("listen",), "is reachable from other machines, and there is no token", hint)
    for key, other in (("cert", "key"), ("key", "cert")):
        if key in table and other not in table:
            api.refuse((key,), f"needs `{other}` too", "TLS takes a certificate and its private key")


def check_engine(engine: CheckedTable) -> None:
    """Refuse a command that cannot work, and an engine without one."""
    table: Mapping[str, Any] = engine.raw
    command = table.get("command")
    if command is None and table.get("kind", "openai") == "openai" and engine.is_good("kind"):
        hint = 'write what to run, for example ["my-server", "{source}", "--port", "{port}"], or set kind'
        engine.refuse(("command",), 'is required for kind = "openai" and missing', hint)
    if command == []:
        engine.refuse(("command",), "must not be empty")
    elif isinstance(command, list) and engine.is_good("command"):
        _check_placeholders(engine, "command", command)
        if placeholders_in(command[0]):
            engine.refuse(("command", 0), "must name the program", "a placeholder cannot be the program")
        if "port" not in {name for argument in command for name in placeholders_in(argument)}:
            engine.refuse(("command",), "has no {port}", "the neuron chooses the port: pass it to the engine")
    _check_environment(engine)


def check_model(model: CheckedTable) -> None:
    """Refuse devices that contradict each other, and unknown placeholders."""
    table: Mapping[str, Any] = model.raw
    devices = table.get("devices")
    if isinstance(devices, list) and model.is_good("devices"):
        if not devices:
            model.refuse(("devices",), "must not be empty", "leave it out to have devices chosen")
        if len(set(devices)) < len(devices):
            model.refuse(("devices",), "names a device twice")
        count = table.get("min_devices", 1)
        if devices and model.is_good("min_devices") and len(devices) < count:
            model.refuse(("devices",), f"has fewer devices than min_devices = {count}")
    if isinstance(table.get("args"), list) and model.is_good("args"):
        _check_placeholders(model, "args", table["args"])
    _check_environment(model)


def check_file(file: CheckedTable) -> None:
    """Refuse models on engines that are missing or cannot do what the model wants."""
    table: Mapping[str, Any] = file.raw
    engines, models, api = table.get("engines", {}), table.get("models", []), table.get("api", {})
    if not isinstance(engines, dict) or not isinstance(models, list):
        return
    is_open = isinstance(api, dict) and api.get("open") is True
    for index, model in enumerate(models):
        if isinstance(model, dict):
            _check_engine_of(file, index, model, engines, is_open=is_open)


def _check_engine_of(
    file: CheckedTable, index: int, model: Mapping[str, Any], engines: Mapping[str, Any], *, is_open: bool
) -> None:
    name = model.get("engine")
    if not isinstance(name, str) or not file.is_good("models", index, "engine"):
        return
    if name not in engines:
        near = nearest(name, engines)
        known = ", ".join(f"[engines.{known}]" for known in engines) or "none"
        hint = f"did you mean `{near}`?" if near else f"add the table, or use one of: {known}"
        file.refuse(("models", index, "engine"), "names an engine that has no [engines] table", hint)
        return
    engine = engines[name]
    if model.get("sleep") not in {1, 2} or not isinstance(engine, dict) or not file.is_good("models", index, "sleep"):
        return
    if engine.get("kind", "openai") != "vllm":
        file.refuse(("models", index, "sleep"), 'is for engines of kind = "vllm" only', "remove it")
    elif is_open:
        message = "needs vLLM's development endpoints, which must not be served with [api] open = true"
        file.refuse(("models", index, "sleep"), message, "set [api] token and remove open, or remove sleep")


def _check_placeholders(table: CheckedTable, key: str, arguments: list[str]) -> None:
    for index, argument in enumerate(arguments):
        for name in placeholders_in(argument):
            if name not in PLACEHOLDERS:
                near = nearest(name, PLACEHOLDERS)
                known = "known: " + " ".join(f"{{{known}}}" for known in PLACEHOLDERS)
                hint = f"did you mean {{{near}}}?" if near else known
                table.refuse((key, index), f"has the unknown placeholder {{{name}}}", hint)


def _check_environment(table: CheckedTable) -> None:
    env = table.raw.get("env")
    for name in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        if isinstance(env, dict) and name in env:
            table.refuse(("env", name), "is set by the neuron", "use `devices` of the model")
