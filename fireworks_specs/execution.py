"""Execution: register a campaign, put steps on its launchpad, run them in this process."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fireworks_specs.recovery import ACTIVE_STATES, recover
from fireworks_specs.registration import is_registered, refuse_unknown_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from fireworks import LaunchPad

    from inv_design.config import CampaignConfig
    from stores.connection import Connection

LOG = logging.getLogger(__name__)

SAY_SECONDS = (5.0, 60.0)
"""A run says for whom it waits: first after, then every."""


class CampaignFailed(RuntimeError):  # noqa: N818
    """Fireworks failed and nothing is left that could go on; the message names them and the cure."""


@dataclass(frozen=True)
class RunSummary:
    """What one ``run`` did."""

    fireworks_run: int
    fireworks_failed: int
    recovered: int
    finished: bool


def register_campaign(config: CampaignConfig, *, progress: Callable[[int, int, str], None] | None = None) -> None:
    """Ingest the campaign's data and insert the campaign, unless both are there.

    Raises
    ------
    ConfigError
        If it is new, and its generator, predictor or a calculator has a name that nobody can know.
    ValueError
        If the database holds a campaign of that name with other settings.
    """
    from stores.provenance import provenance
    from stores.records import insert_campaign

    if is_registered(config):
        return
    refuse_unknown_names(config)  # what is inserted stays
    ingest_data(config, progress=progress)
    kept = {key: value for key, value in config.model_dump(mode="json").items() if key != "password_file"}
    insert_campaign(config.name, kept, targets=config.targets, provenance=provenance())


def ingest_data(config: CampaignConfig, *, progress: Callable[[int, int, str], None] | None = None) -> None:
    """Insert the campaign's labelled crystals as structures with reference calculations (idempotent).

    Raises
    ------
    ValueError
        If the data source is neither packaged nor a readable file, or nothing of it passes the filter.
    """
    from inv_design.datasets.mp_binaries import SOURCE, filter_dataset, load_mp_binaries
    from inv_design.structures.elements import expand_elements
    from stores.ingest import ingest_reference

    data = config.data
    if data.source == "mp-binaries":
        entries, source = load_mp_binaries(), SOURCE
    else:
        from inv_design.datasets.files import load_labelled

        entries, source = load_labelled(data.source), data.source
    chosen = filter_dataset(
        entries,
        elements=expand_elements(data.elements),
        exclude=expand_elements(data.exclude),
        max_sites=data.max_sites,
        label_range=data.label_range,
    )
    if not chosen:
        raise ValueError(
            f"data: none of {len(entries)} entries of {data.source} passes the filter; widen data.elements"
        )
    if data.max_entries is not None:
        entries = sorted(chosen, key=lambda e: e.source_id)[: data.max_entries]
    ingest_reference(entries, source, progress=progress)


def advance(launchpad: LaunchPad, campaign: str, config: CampaignConfig, *, rounds: int, force: bool = False) -> int:
    """Put the next step's workflows on the launchpad; return how many.

    Of several workers that derive the same step one gets the claim, the others add nothing. ``force`` adds it under a
    new claim if nothing of it is active any more: for a step whose workflows are lost or failed.
    """
    from fireworks_specs.steps import next_step
    from fireworks_specs.workflows import step_workflows
    from stores.connection import connect_from_launchpad
    from stores.outage import LOST
    from stores.steps import claim_step, release_step
    from stores.workers import this_worker

    step = next_step(campaign, config, rounds=rounds)
    if step is None:
        return 0
    connection = connect_from_launchpad(launchpad)
    key, attempt = step.key, 1
    payload = {"campaign": campaign, "items": len(step.items), "worker": this_worker()}
    while not claim_step(key, payload | {"claimed_at": connection.now()}):
        states = _states_of_step(launchpad, key)
        if not states:  # whoever claimed it is about to add it, or never will
            if not _take_void_claim(connection, launchpad, key):
                time.sleep(0.5)
        elif force and states.isdisjoint(ACTIVE_STATES):
            attempt += 1
            key = f"{step.key}#{attempt}"
        else:
            return 0
    workflows = step_workflows(step, rounds=rounds, key=key)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # FireWorks draws a bar of its own
            launchpad.bulk_add_wfs(workflows)
    except BaseException:
        with contextlib.suppress(*LOST):  # else the claim is void when its lease is over
            release_step(key)
        raise
    return len(workflows)


def _states_of_step(launchpad: LaunchPad, key: str) -> set[str]:
    """Return the states of the fireworks that were added under a step's claim."""
    added = launchpad.workflows.find({"metadata.key": key}, {"nodes": 1})
    nodes = [fw_id for workflow in added for fw_id in workflow["nodes"]]
    return set(launchpad.fireworks.distinct("state", {"fw_id": {"$in": nodes}})) if nodes else set()


def _take_void_claim(connection: Connection, launchpad: LaunchPad, key: str) -> bool:
    """Remove a step's claim if its worker died before it added the workflows; return whether this call did."""
    from stores.claims import lease_seconds
    from stores.workers import is_dead

    found = connection.db["steps"].find_one({"key": key})
    if found is None:
        return True
    payload = found.get("payload") or {}
    since = payload.get("claimed_at") or found["provenance"]["created_at"]
    age = (connection.now() - since).total_seconds()
    if age <= lease_seconds() and not is_dead(payload.get("worker") or {}):
        return False
    if _states_of_step(launchpad, key):  # it was added after all
        return False
    # by its _id: of several that see this, one removes it, and never the claim that follows
    removed: int = connection.db["steps"].delete_one({"_id": found["_id"]}).deleted_count
    return bool(removed)


def work_in_progress(launchpad: LaunchPad, campaign: str) -> bool:
    """Return whether pieces of work (not advances) of a campaign are waiting or running."""
    query = {"spec.campaign": campaign, "spec.role": "work", "state": {"$in": ACTIVE_STATES}}
    return launchpad.fireworks.find_one(query, {"fw_id": 1}) is not None


def launch(
    connection: Connection,
    config: CampaignConfig,
    *,
    rounds: int | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> int:
    """Put the campaign's next step on the launchpad unless it has work there; return the number of workflows added.

    Work of dead workers is given up first. The workflows put what follows on the launchpad themselves, so that workers
    need nothing but ``rlaunch``. ``progress`` is told what is ingested.
    """
    launchpad = connection.launchpad()
    register_campaign(config, progress=progress)
    recover(launchpad, config.name, everything=False, failed=False)
    if has_active_work(launchpad, config.name):
        return 0
    return advance(launchpad, config.name, config, rounds=config.rounds if rounds is None else rounds, force=True)


def write_workflows(
    config: CampaignConfig,
    path: Path,
    *,
    rounds: int | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> int:
    """Write the next step's workflows to a YAML file that ``lpad add`` accepts; return how many.

    ``lpad add`` takes one workflow per file, so that several become one workflow of independent chains.
    """
    from fireworks import Workflow

    from fireworks_specs.steps import next_step
    from fireworks_specs.workflows import step_workflows

    register_campaign(config, progress=progress)
    last = config.rounds if rounds is None else rounds
    step = next_step(config.name, config, rounds=last)
    if step is None:
        return 0
    workflows = step_workflows(step, rounds=last)
    links = {parent: children for w in workflows for parent, children in w.links.items()}
    merged = Workflow([fw for w in workflows for fw in w.fws], links, name=step.key, metadata=workflows[0].metadata)
    merged.to_file(str(path))
    return len(workflows)


def run(connection: Connection, config: CampaignConfig, *, rounds: int | None = None) -> RunSummary:
    """Run a campaign's rounds in this process to their end, from wherever it stands.

    Raises
    ------
    CampaignFailed
        If the same step failed twice in a row without a single new result.
    ConnectionError
        If the server stayed away for longer than :func:`stores.outage.patience`.
    KeyboardInterrupt
        On Ctrl-C, after the interrupted firework was put back.
    """
    from stores.outage import LOST, patience

    try:
        return _run(connection, config, config.rounds if rounds is None else rounds)
    except LOST:
        raise ConnectionError(
            f"{connection.uri_redacted} has been away for more than {patience():g} s; finished results are safe, in it "
            "or in the local journal: start the server and call run again"
        ) from None


def _run(connection: Connection, config: CampaignConfig, last: int) -> RunSummary:
    from fireworks import FWorker
    from fireworks.core.rocket_launcher import launch_rocket

    from builders.run import build_campaign
    from fireworks_specs.steps import next_step
    from stores.outage import until_done
    from stores.workers import this_worker

    launchpad = connection.launchpad()
    register_campaign(config, progress=_report_ingest)
    recovered = recover(launchpad, config.name, everything=connection.kind == "embedded")
    worker = FWorker(name=worker_name(), query={"spec.campaign": config.name}, env={"worker": this_worker()})
    count = failed = 0
    seen: str | None = None
    stuck: str | None = None
    with _quietly(), _interruptible() as interrupt:
        while True:
            if _ready(launchpad, config.name):
                # a failed firework's trace is in its launch document; here it would tear the progress bars
                launch_rocket(launchpad, worker, strm_lvl="CRITICAL", err_file=io.StringIO())
                count += 1
                if interrupt.is_set:
                    recover(launchpad, config.name, everything=connection.kind == "embedded")
                    raise KeyboardInterrupt
                continue
            if has_active_work(launchpad, config.name):
                if not _wait_for_others(launchpad, config.name, interrupt):
                    raise KeyboardInterrupt
                continue
            step = until_done(lambda: next_step(config.name, config, rounds=last), connection.client)
            if step is None:
                break
            failed = _fizzled(launchpad, config.name)
            if stuck == step.key:
                raise CampaignFailed(_failure_message(launchpad, config.name, step.name, step.round))
            # a step that is on the launchpad already may have been finished by another run since it was derived; if
            # it comes up again with nothing active, its workflows were lost or have failed
            if advance(launchpad, config.name, config, rounds=last, force=seen == step.key):
                stuck = step.key
            seen = step.key
    # what a process that was killed may have left unbuilt; nothing if all is current
    until_done(lambda: build_campaign(config.name), connection.client)
    return RunSummary(count, failed, recovered, finished=True)


def worker_name() -> str:
    """Return the name under which this process takes fireworks: host and process id."""
    return f"run@{socket.gethostname()}:{os.getpid()}"


def _ready(launchpad: LaunchPad, campaign: str) -> bool:
    query = {"spec.campaign": campaign, "state": "READY"}
    return launchpad.fireworks.find_one(query, {"fw_id": 1}) is not None


def has_active_work(launchpad: LaunchPad, campaign: str) -> bool:
    """Return whether a firework of a campaign, an advance too, waits or runs."""
    query = {"spec.campaign": campaign, "state": {"$in": ACTIVE_STATES}}
    return launchpad.fireworks.find_one(query, {"fw_id": 1}) is not None


def _fizzled(launchpad: LaunchPad, campaign: str) -> int:
    return int(launchpad.fireworks.count_documents({"spec.campaign": campaign, "state": "FIZZLED"}))


def _failure_message(launchpad: LaunchPad, campaign: str, step: str, number: int) -> str:
    document = launchpad.fireworks.find_one(
        {"spec.campaign": campaign, "state": "FIZZLED"}, {"fw_id": 1, "name": 1}, sort=[("fw_id", -1)]
    )
    if document is None:
        return f"round {number}, step {step}: its fireworks completed without a new result; see inv-design lpad get_fws"
    launch = launchpad.launches.find_one({"fw_id": document["fw_id"]}, {"action": 1}, sort=[("launch_id", -1)])
    trace = (((launch or {}).get("action") or {}).get("stored_data") or {}).get("_exception", {}).get("_stacktrace", "")
    last_line = trace.strip().splitlines()[-1] if trace.strip() else "unknown error"
    return (
        f"round {number}, step {step}: firework {document['fw_id']} failed twice: {last_line}; "
        f"see `inv-design lpad get_fws -i {document['fw_id']} -d all`, mend it and call run again"
    )


def _wait_for_others(launchpad: LaunchPad, campaign: str, interrupt: _Interrupt) -> bool:
    """Wait while other workers hold the campaign's fireworks; return False when interrupted."""
    say_at = time.monotonic() + SAY_SECONDS[0]
    while has_active_work(launchpad, campaign) and not _ready(launchpad, campaign):
        if interrupt.is_set:
            return False
        recover(launchpad, campaign, everything=False)
        if time.monotonic() >= say_at and (message := _waiting_message(launchpad, campaign)):
            LOG.warning(message)
            say_at = time.monotonic() + SAY_SECONDS[1]
        time.sleep(1.0)
    return True


def _waiting_message(launchpad: LaunchPad, campaign: str) -> str:
    """Return for which fireworks of which hosts a run waits, and what to do if they are gone; "" for none."""
    from stores.claims import lease_seconds

    taken = {"spec.campaign": campaign, "state": {"$in": ["RUNNING", "RESERVED"]}}
    found = list(launchpad.fireworks.find(taken, {"fw_id": 1, "name": 1, "state": 1}).sort("fw_id", 1))
    if not found:
        waiting = launchpad.fireworks.find_one({"spec.campaign": campaign, "state": "WAITING"}, {"fw_id": 1})
        if waiting is None:
            return ""
        fw_id = waiting["fw_id"]
        return (
            f"waiting for firework {fw_id}, which waits for one that is paused or defused; see `inv-design lpad "
            f"get_wflows -i {fw_id} -d more`, or give it up: `inv-design lpad archive_wflows -i {fw_id}`"
        )
    texts = []
    for firework in found[:3]:
        launch = launchpad.launches.find_one({"fw_id": firework["fw_id"]}, {"host": 1}, sort=[("launch_id", -1)]) or {}
        host = launch.get("host") or "an unknown host"
        texts.append(f"{firework['fw_id']} ({firework['name']}, {firework['state']} on {host})")
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return (
        f"waiting for firework {', '.join(texts)}{more}; what a dead worker runs is given up {2 * lease_seconds():g} s "
        f"after its last sign of life, and run again at once by `inv-design lpad rerun_fws -i {found[0]['fw_id']}`"
    )


class _Interrupt:
    is_set = False


@contextlib.contextmanager
def _interruptible() -> Iterator[_Interrupt]:
    """Note Ctrl-C and SIGTERM: FireWorks turns the exception into a failed firework, the note survives it."""
    note = _Interrupt()

    def on_signal(*_: object) -> None:
        note.is_set = True
        raise KeyboardInterrupt

    try:
        previous = {s: signal.signal(s, on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: signals stay with whoever owns it
        previous = {}
    try:
        yield note
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep FireWorks from leaving an FW.json where `run` was called, and from logging every rocket."""
    import logging

    from fireworks.core import rocket

    previous = rocket.PRINT_FW_JSON, rocket.ROCKET_STREAM_LOGLEVEL
    rocket.PRINT_FW_JSON, rocket.ROCKET_STREAM_LOGLEVEL = False, "CRITICAL"
    for name in ("launchpad", "rocket.launcher"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        rocket.PRINT_FW_JSON, rocket.ROCKET_STREAM_LOGLEVEL = previous


def _report_ingest(done: int, total: int, _: str = "") -> None:
    from fireworks_specs.progress import report

    report("ingest reference data", done, total)
