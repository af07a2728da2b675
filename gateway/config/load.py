"""`cortex.toml` -> settings, or every reason why not; first `settings_environment.py` lays the environment over it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from catalogue.load import in_file_order, parse_toml
from catalogue.models import Fault, FaultyFile
from catalogue.toml import fields
from catalogue.toml.fields import Place, Report
from catalogue.toml.positions import Positions, scan
from gateway.config.environment import overlay
from gateway.config.keys import HOMES, SETTINGS_FIELDS
from gateway.config.settings import AdminSettings, GatewaySettings, NeuronSettings, Settings

__all__ = ["LoadedSettings", "load"]


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """Settings, and what was odd about where they came from but did not refuse them."""

    settings: Settings
    warnings: tuple[Fault, ...] = ()


def load(path: Path | None, environ: Mapping[str, str]) -> LoadedSettings:
    """Settings from the file, overridden by the environment; the defaults for what neither says.

    Args:
        path: The `cortex.toml`, or None to go by the environment alone.
        environ: The process's environment; only names that begin with `CORTEX_`, in any case, are looked at.

    Raises:
        FaultyFile: With every fault of file and environment at once. The value of a secret is in none of them.
    """
    document, positions = _read_file(path)
    report = Report(str(path or "environment"), positions, homes=HOMES)
    report.overrides = overlay(document, environ, report)
    settings = _read_settings(document, Place(report), path)
    if report.faults or settings is None:
        raise FaultyFile(in_file_order(report.faults))
    return LoadedSettings(settings, in_file_order(report.warnings))


def _read_file(path: Path | None) -> tuple[dict[str, Any], Positions]:
    if path is None:
        return {}, Positions()
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise FaultyFile((Fault(str(path), None, None, f"cannot be read: {reason}"),)) from error
    text, document = parse_toml(data, path=str(path))
    return document, scan(text)


def _read_settings(document: dict[str, Any], root: Place, path: Path | None) -> Settings | None:
    """None if anything is at fault. The looks across several keys happen regardless, on what is readable."""
    read = fields.read_fields(document, SETTINGS_FIELDS, root)
    if "gateway" in read:
        _refuse_one_address_twice(read["gateway"], document["gateway"], root / "gateway")
        read["gateway"] = _with_its_spool_beside(path, read["gateway"], root / "gateway" / "spool_dir")
    fields.refuse_duplicates(document.get("neurons"), "name", root / "neurons")
    _warn_of_one_neuron_twice(read.get("neurons", ()), root / "neurons")
    _warn_of_a_door_without_a_key(read.get("admin", AdminSettings()), root / "admin")
    if "models_config" in read:
        read["models_config"] = _beside(path, Path(read["models_config"]), root / "models_config")
    return None if root.report.faults else Settings(**read)


# Looks across several keys.


def _refuse_one_address_twice(gateway: GatewaySettings, said: Mapping[str, object], place: Place) -> None:
    if gateway.listen.port and gateway.listen == gateway.metrics_listen:
        key, other = ("metrics_listen", "listen") if "metrics_listen" in said else ("listen", "metrics_listen")
        (place / key).fault(f"is the same address as {other}", "give one of them another port")


def _warn_of_one_neuron_twice(neurons: tuple[NeuronSettings, ...], place: Place) -> None:
    first: dict[str, str] = {}
    for index, neuron in enumerate(neurons):
        if neuron.endpoint in first:
            message = f"is also the endpoint of {first[neuron.endpoint]!r}"
            (place / index / "endpoint").warn(message, "one neuron under two names is counted twice")
        first.setdefault(neuron.endpoint, neuron.name)


def _with_its_spool_beside(config: Path | None, gateway: GatewaySettings, place: Place) -> GatewaySettings:
    if gateway.spool_dir is None:
        return gateway
    return replace(gateway, spool_dir=_beside(config, gateway.spool_dir, place))


def _warn_of_a_door_without_a_key(admin: AdminSettings, place: Place) -> None:
    if admin.public and admin.token is None:
        (place / "public").warn("opens nothing", "there is no admin API without a token")


def _beside(config: Path | None, wanted: Path, place: Place) -> Path:
    """A relative path is relative to the config file, never to wherever the process was started."""
    if config is None and not wanted.is_absolute():
        place.fault("is relative, and there is no config file for it to be relative to", "write an absolute path")
        return wanted
    return wanted if config is None else config.absolute().parent / wanted
