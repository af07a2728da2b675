"""The composition root: builds the parts of one gateway and wires them. `serve.py` runs what is built here."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import structlog
import trio

from catalogue.models import Catalogue
from gateway import __version__, errors
from gateway.access.keys.key import Key
from gateway.aliases import plan as planning
from gateway.aliases.auditor import Auditor
from gateway.aliases.catalogue_edits import CatalogueEdits
from gateway.aliases.catalogue_store import CatalogueStore
from gateway.aliases.files.catalogue_files import CatalogueFiles
from gateway.aliases.files.state_move import move_state_once
from gateway.aliases.plan import ChangePlan
from gateway.aliases.rollout import RolloutController
from gateway.aliases.warm_swap import WarmSwaps
from gateway.aliases.warm_up import ModelWarmer
from gateway.asgi import App
from gateway.config.settings import Settings
from gateway.files import secret_key
from gateway.fleet.control.membership import FleetMembership, control_client
from gateway.fleet.control.poller import Poller
from gateway.fleet.learnt import learnt_models, restore_learnt
from gateway.fleet.loading.drain import Drains, DrainView
from gateway.fleet.loading.manual import ManualLoads
from gateway.fleet.loading.scheduler import LoadScheduler
from gateway.fleet.model_names import known_names
from gateway.fleet.readiness import FleetReadiness
from gateway.fleet.routing.queue import AdmissionQueues
from gateway.fleet.state import Fleet
from gateway.http.pool import UpstreamPool
from gateway.http.server_tls.certificate_store import open_certificates
from gateway.proxy.app import InferenceApp
from gateway.proxy.context import ProxyContext
from gateway.proxy.hedging.hedge_policy import HedgePolicy
from gateway.proxy.shadow.shadower import Shadower
from gateway.server import admin_app, public_routes
from gateway.server.access.admin_keys import KeyRoutes
from gateway.server.access.parts import AccessParts, print_first_key
from gateway.server.access.usage_parts import UsageParts
from gateway.server.admin_app import AdminContext
from gateway.server.capture.capture import Capture
from gateway.server.capture.capture_app import CaptureApp
from gateway.server.console.console import Console, ConsoleContext
from gateway.server.drain_store import DrainStore
from gateway.server.health.body import CatalogueStatus, catalogue_status, health_body
from gateway.server.health.problems import HealthProblem, ProblemList, find_problems
from gateway.server.health.servability import Servability
from gateway.server.models_api import Entry, ModelsApi
from gateway.server.neurons.neuron_records import NeuronRecords
from gateway.server.neurons.neuron_store import NeuronStore
from gateway.server.operator_actions import OperatorActions, describe_ended_move
from gateway.server.public_app import PublicApp
from gateway.server.public_routes import PublicRoutes
from gateway.server.restart.takeover_messages import HandedState
from gateway.telemetry.metrics import CatalogueReadings, Metrics, RolloutReading
from gateway.telemetry.request_log import RequestLog
from gateway.telemetry.tracing.tracing import Tracing

__all__ = ["Gateway"]

log = structlog.get_logger("cortex.gateway")


class Gateway:
    """All parts of one gateway, built and wired, nothing started.

    Args:
        settings: Everything an operator can set.
        first_secret: The secret of the first key, if the operator chose it.
        show_first_key: Called with the secret of the first key if the gateway made it.

    Raises:
        catalogue.toml.faults.FaultyFile: The configured `models.toml`, file of the neurons, or certificate is missing
            or faulty.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        first_secret: str | None = None,
        show_first_key: Callable[[str], None] = print_first_key,
    ) -> None:
        self.settings = settings
        self.certificates = open_certificates(settings.tls)
        self.access_parts = AccessParts(
            settings,
            end_requests=self._end_requests_of,
            first_secret=first_secret,
            show_first_key=show_first_key,
            record=lambda *args, **fields: self.auditor.record_action(*args, **fields),  # noqa: PLW0108 - made below
        )
        self.neuron_store = NeuronStore(settings)
        self.neuron_store.load_initial()
        self.fleet = Fleet(self.neuron_store.neurons, misses=settings.poll.misses)
        self.catalogue_store = CatalogueStore(settings.models_config, readiness=FleetReadiness(self.fleet))
        self.catalogue_store.load_initial()
        self.metrics = Metrics(
            per_key=settings.metrics.per_key, has_exemplars=settings.tracing.otlp_endpoint is not None
        )
        self.tracing = Tracing(settings.tracing, settings.metrics, self.metrics, __version__)
        self.usage_parts = UsageParts(
            settings,
            self.access_parts,
            catalogue=self.catalogue_store,
            running=lambda: len(self.request_log.live),
            count_exceeded=self.metrics.count_limit_exceeded,
        )
        self._instance = secrets.token_hex(16)
        make_client = partial(control_client, instance=self._instance)
        self.neurons = {neuron.name: make_client(neuron) for neuron in self.neuron_store.neurons}
        self.poller = Poller(self.fleet, self.neurons, settings.poll)
        self.upstream = UpstreamPool(idle_limit=settings.limits.upstream_idle_connections)
        self.request_log = RequestLog(
            self.metrics,
            log_requests=settings.gateway.access_log and settings.log.level in {"debug", "info"},
            remembered=settings.limits.explain_requests,
            remembered_refused=settings.limits.explain_refused,
            tracer=self.tracing.tracer,
        )
        self.catalogue_files = CatalogueFiles.from_settings(settings)
        move_state_once(self.catalogue_files)
        self.auditor = Auditor(
            self.catalogue_files, self.catalogue_store, plan=lambda old, new: self._plan(old, new).as_short_json()
        )
        self.edits = CatalogueEdits(
            self.catalogue_files,
            self.catalogue_store,
            known_models=self._known_models,
            last_audit_line=self.auditor.last_line,
        )
        self.rollouts = RolloutController(
            self.catalogue_files,
            self.catalogue_store,
            watch=self.request_log.watch,
            unwatch=self.request_log.unwatch,
            metrics=self.metrics,
        )
        self.scheduler = LoadScheduler(
            self.fleet,
            catalogue=self.catalogue_store,
            neurons=self.neurons,
            settings=settings,
            count_cold_start=self.metrics.count_cold_start,
            count_eviction=self.metrics.count_eviction,
            poll_soon=self.poller.poll_soon,
        )
        self.membership = FleetMembership(
            self.fleet,
            self.poller,
            self.neurons,
            poll=settings.poll,
            is_busy=self.scheduler.is_busy,
            make_client=make_client,
        )
        NeuronRecords(self.neuron_store, self.membership, record=self.auditor.record_action)
        warmer = ModelWarmer(
            self.catalogue_store,
            fleet=self.fleet,
            wait_until_routable=self.scheduler.wait_until_routable,
            upstream=self.upstream,
            deadlines=settings.deadlines,
            poll_soon=self.poller.poll_soon,
        )
        self.swaps = WarmSwaps(
            self.catalogue_store,
            warmer,
            fleet=self.fleet,
            warm_deadline_s=settings.deadlines.load_seconds,
            metrics=self.metrics,
        )
        self.shadows = Shadower(
            self.fleet,
            self.upstream,
            catalogue=self.catalogue_store,
            metrics=self.metrics,
            deadlines=settings.deadlines,
            pass_request_headers=settings.gateway.pass_request_headers,
        )
        self.drains = Drains(
            self.fleet,
            catalogue=self.catalogue_store,
            scheduler=self.scheduler,
            load_s=settings.deadlines.load_seconds,
            min_residency_s=settings.eviction.min_residency_seconds,
        )
        self.manual_loads = ManualLoads(
            self.fleet, catalogue=self.catalogue_store, scheduler=self.scheduler, neurons=self.neurons
        )
        self.drain_store = DrainStore(
            self.catalogue_files.drains_path, self.drains, nodes=lambda: self.fleet.nodes, move_ended=self._move_ended
        )
        self.drain_store.restore()
        self.actions = OperatorActions(
            self.drains, self.manual_loads, self.drain_store, record=self.auditor.record_action
        )
        self.servability = Servability(
            self.fleet, catalogue=lambda: self.catalogue_store.current, failed_loads=self.scheduler.failing
        )
        self.problems = ProblemList(self._find_problems)
        self.admission = AdmissionQueues(self.fleet, catalogue=self.catalogue_store, limit=settings.limits.queue)
        self.catalogue_store.subscribe(lambda *_: self.admission.wake_all())
        self.inference = InferenceApp(
            ProxyContext(
                settings=settings,
                catalogue=self.catalogue_store,
                fleet=self.fleet,
                upstream=self.upstream,
                admission=self.admission,
                scheduler=self.scheduler,
                request_log=self.request_log,
                poll_soon=self.poller.poll_soon,
                hedge_policy=HedgePolicy(self.metrics),
                secret_key=secret_key.read_or_temporary(self.catalogue_files.state_dir),
                shadows=self.shadows,
                access=self.access_parts.access,
                accounting=self.usage_parts.accounting,
            )
        )
        self._observe()
        self.models_api = ModelsApi(owned_by=settings.gateway.owned_by)
        self.capture = Capture.from_settings(settings.capture, record=self.auditor.record_action)
        inference: App = CaptureApp(self.inference, self.capture) if settings.capture.enabled else self.inference
        self.console = Console(self._console_context())
        self.admin_routes = admin_app.make_app(self._admin_context())
        self.admin_app: App = self.console.port(cast("App", self.admin_routes), inference, self.access_parts.hosts)
        routes_app = cast("App", public_routes.make_app(self._public_routes(), __version__))
        self.app = PublicApp(
            inference,
            routes_app,
            settings,
            admin=self.admin_app if settings.admin.public else None,
            hosts=self.access_parts.hosts,
        )

    def _end_requests_of(self, key: Key) -> None:
        self.inference.cut_key(key.id, errors.InvalidApiKey(f"the key {key.name!r} ({key.id}) was revoked"))

    def _observe(self) -> None:
        """Let the metrics read the state that they export at each scrape."""
        self.metrics.watch_process()
        self.metrics.watch_fleet(lambda: self.fleet.snapshot().nodes)
        self.metrics.watch_catalogue(self._catalogue_readings)
        self.metrics.watch_rollouts(
            lambda: [RolloutReading(view.alias, view.step, view.guards) for view in self.rollouts.views()]
        )
        self.metrics.watch_queue(self.admission.waiting_counts)

    def _admin_context(self) -> AdminContext:
        return AdminContext(
            access=self.access_parts.access,
            keys=KeyRoutes(
                self.access_parts.store,
                self.access_parts.refresh,
                self.auditor.record_action,
                currency=self.settings.ledger.currency,
                use=self.usage_parts.use_of,
            ),
            usage=self.usage_parts.reports,
            limits=self.settings.limits,
            catalogue=self.catalogue_store,
            edits=self.edits,
            neurons=self.neuron_store,
            fleet=self.fleet,
            scheduler=self.scheduler,
            drains=self.drains,
            actions=self.actions,
            swaps=self.swaps,
            rollouts=self.rollouts,
            shadows=self.shadows,
            requests=self.request_log,
            health=self._health,
            models=self._list_models,
            plan=self._plan,
            metrics=self.metrics.expose_for,
            queues=self.admission.views,
            upstream_statistics=self.upstream.statistics,
            console=self.console,
            capture=self.capture,
        )

    def _console_context(self) -> ConsoleContext:
        return ConsoleContext(
            access=self.access_parts.access,
            catalogue=self.catalogue_store,
            fleet=self.fleet,
            drains=self.drains,
            scheduler=self.scheduler,
            swaps=self.swaps,
            requests=self.request_log,
            queues=self.admission.views,
            health=self._health,
            capture=self.capture.status,
        )

    def _public_routes(self) -> PublicRoutes:
        return PublicRoutes(
            access=self.access_parts.access,
            usage=self.usage_parts.reports,
            models=self._list_models,
            model=lambda model_id: self.models_api.model_entry(self.catalogue_store.current, self.fleet, model_id),
            health=self._health,
            ready=lambda: self.fleet.any_open() and not self.inference.refuses_new,
            count_unknown_path=self.metrics.count_unknown_path,
            instance=self._instance,
            console_url=partial(self.console.url, self.settings.gateway.metrics_listen.host),
        )

    def _list_models(self) -> list[Entry]:
        return self.models_api.list_models(self.catalogue_store.current, self.fleet)

    def _known_models(self) -> list[str]:
        """The models that the catalogue or a neuron has."""
        catalogue = self.catalogue_store.current
        return [name for name in known_names(self.fleet, catalogue) if name not in catalogue.aliases]

    def _plan(self, old: Catalogue, new: Catalogue) -> ChangePlan:
        """What a change from one catalogue to the other requires of the fleet as it is now."""
        live = [(record.routing.alias, record.routing.model) for record in self.request_log.live.values()]
        min_residency_s = self.settings.eviction.min_residency_seconds
        times = self.scheduler.times
        return planning.plan(old, new, self.fleet, live=live, min_residency_s=min_residency_s, times=times)

    def _health(self) -> dict[str, Any]:
        """The body of `/health`."""
        body = health_body(
            self.fleet,
            self.catalogue_store.current,
            self._catalogue_status(),
            problems=self.problems.as_json(),
            servability=self.servability,
            swaps=self.swaps.views(),
            rollouts=self.rollouts.by_alias(),
        )
        return body | {"audit": self.auditor.status()}

    def _catalogue_status(self) -> CatalogueStatus:
        return catalogue_status(self.catalogue_store.current, self.catalogue_store.last_error)

    def _find_problems(self) -> Iterator[HealthProblem]:
        files = self.catalogue_files
        states = (
            (files.rollouts_path, self.rollouts.error),
            (files.drains_path, self.drain_store.error),
            (self.neuron_store.history.folder, self.neuron_store.history_error),
        )
        return find_problems(
            self.fleet,
            self.servability,
            catalogue=self._catalogue_status(),
            swaps=self.swaps.views(),
            rolled_back=self.rollouts.unacknowledged(),
            audit=self.auditor.status(),
            certificates=self.certificates,
            unwritable=[(str(path), reason) for path, reason in states if reason is not None],
            rejected=self.neuron_store.rejected(),
            store=self.access_parts.store,
            ledger=self.usage_parts.ledger,
        )

    def _move_ended(self, view: DrainView, who: str) -> None:
        summary, outcome = f"drain {view.node} and move its models", describe_ended_move(view)
        self.auditor.record_action("drain", who, summary=summary, outcome=outcome, node=view.node, move=True)

    def _catalogue_readings(self) -> CatalogueReadings:
        reloads = {str(result): times for result, times in self.catalogue_store.reloads.items()}
        catalogue = self.catalogue_store.current
        waiting = {name: warming.failed is not None for name, warming in catalogue.warming.items()}
        return CatalogueReadings(catalogue.generation, self.catalogue_store.last_error is None, reloads, waiting)

    async def start_serving(self, nursery: trio.Nursery) -> None:
        """Start the background tasks that requests need, while this process has any. One that crashes ends the nursery.

        Several gateways may do the same at once: a neuron joins loads, and refuses to unload what it is using.
        """
        for run in (
            self.access_parts.run,
            self.tracing.run,
            self.scheduler.run,
            self.shadows.run,
            self.inference.silence.run,
            self.membership.run,
            self.poller.run,
            self.console.figures.run,
            self.console.feed.run,
            self.capture.run,
        ):
            await nursery.start(run)
        nursery.start_soon(self.upstream.run)
        if self.certificates is not None:
            nursery.start_soon(self.certificates.watch)

    async def start_writers(self, nursery: trio.Nursery) -> None:
        """Start the tasks that write the state files or change the fleet by plan: in one process at a time.

        Start them once the neurons were polled. They can be ended, and started again.
        """
        for run in (
            self.auditor.run,
            self.drains.run,
            self.swaps.run,
            self.catalogue_store.watch,
            self.neuron_store.watch,
            self.rollouts.run,
            self.drain_store.run,
            self.problems.run,
        ):
            await nursery.start(run)

    def handed_state(self) -> HandedState:
        """What the process that replaces this one gets, besides the state files."""
        catalogue = self.catalogue_store.current
        in_force = {name: catalogue.aliases[name].targets for name in catalogue.warming}
        return HandedState(
            catalogue.generation,
            catalogue.digest,
            {name: [(target.model, target.weight) for target in targets] for name, targets in in_force.items()},
            learnt_models(self.fleet),
        )

    async def adopt(self, state: HandedState) -> None:
        """Go on where another process has ended: read the state files again, and note what it has learnt.

        Call it after `start_serving` and before `start_writers`.
        """
        restore_learnt(self.fleet, state.models)
        await self.drain_store.adopt()
        await self.catalogue_store.adopt(state.generation, state.digest, state.targets_in_force)

    async def aclose(self) -> None:
        """Close all connections to neurons."""
        self.upstream.close()
        # In a nursery each `aclose` begins, and closes its sockets, even if the deadline has already passed.
        async with trio.open_nursery() as nursery:
            for client in self.neurons.values():
                nursery.start_soon(client.aclose)
