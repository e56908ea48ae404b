"""Flows of atomate2, run here job by job into a JobStore; a job whose work is done already is not run again.

:func:`jobflow.run_locally` does the same without the last: after a kill it would begin with the first job. Here a job
of a maker is known by the hash of the maker's settings and of the crystal that it works on.
"""

from __future__ import annotations

import logging
import re
from contextlib import chdir, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jobflow import Flow, Job, JobStore
    from psutil import Process

LOG = logging.getLogger(__name__)

NOT_OF_THE_WORK = (
    "name", "run_vasp_kwargs", "write_additional_data", "write_input_set_kwargs", "task_document_kwargs",
)  # fmt: skip
"""A maker's fields that make no difference to the numbers."""


PATIENCE = 10.0  # seconds that a program has to end when it is told to


class JobFailed(RuntimeError):  # noqa: N818
    """A job of a flow raised; its ``__cause__`` says what, and its files are in ``folder``."""

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(f"job {name!r} failed in {folder}")
        self.name = name
        self.folder = folder


def run_flow(flow: Flow, store: JobStore, folder: Path) -> list[Any]:
    """Run a flow's jobs one after the other, each in a new folder in ``folder``; return their outputs in order.

    Raises
    ------
    JobFailed
        If a job raises; those that follow are not run, those before are in the store.
    pymongo.errors.ConnectionFailure
        If the database stays away.
    """
    return list(_outputs(flow, store, folder))


def _outputs(flow: Flow, store: JobStore, folder: Path) -> Iterator[Any]:
    for job, _ in flow.iterflow():
        job.resolve_args(store)
        work = work_of(job)
        if work is not None:
            job.metadata["work"] = work
            if (output := adopt(job, work, store)) is not None:
                yield output
                continue
        response = _run(job, store, folder)
        if response.output is not None:
            yield response.output
        for further in (response.replace, response.detour, response.addition):
            if further is not None:
                yield from _outputs(further, store, folder)


def _run(job: Job, store: JobStore, folder: Path) -> Any:
    import psutil

    from stores.outage import LOST

    _forget_lost_folder(job)
    here = new_folder(folder, job.name)
    before = set(psutil.Process().children(recursive=True))
    try:
        with chdir(here):
            response = job.run(store)
    except LOST:  # the database is away; nothing is wrong with the job
        raise
    except Exception as error:
        raise JobFailed(job.name, here) from error
    except BaseException:  # an interrupt: custodian's programs are in sessions of their own and would go on
        end_programs(before)
        raise
    if response.stop_children or response.stop_jobflow:
        raise JobFailed(job.name, here) from RuntimeError("the job stopped its flow")
    return response


def end_programs(before: set[Process]) -> None:
    """Terminate the programs that this process has started since those ``before``, and wait for them a moment.

    Where they work says nothing: custodian may run VASP in a scratch directory.
    """
    import psutil

    found = [child for child in psutil.Process().children(recursive=True) if child not in before]
    for child in found:
        with suppress(psutil.Error):  # it has ended meanwhile
            child.terminate()
    for child in psutil.wait_procs(found, timeout=PATIENCE)[1]:
        with suppress(psutil.Error):
            child.kill()


def new_folder(parent: Path, name: str) -> Path:
    """Return a new folder for a job, numbered in the order of the jobs."""
    parent.mkdir(parents=True, exist_ok=True)
    number = sum(1 for _ in parent.iterdir())
    while True:
        number += 1
        folder = parent / f"{number:03d}-{re.sub(r'[^A-Za-z0-9.]+', '-', name).strip('-')}"
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder


def work_of(job: Job) -> str | None:
    """Return the hash of what a resolved job computes, ``None`` for one that is no maker's.

    The folder of an earlier calculation, from which a job may copy files, is a place to start from and not in it.
    """
    from jobflow import Maker
    from monty.json import jsanitize

    from stores.protocol import content_id

    maker = getattr(job.function, "__self__", None)
    if not isinstance(maker, Maker):
        return None
    settings = {k: v for k, v in maker.as_dict().items() if k not in NOT_OF_THE_WORK}
    arguments = {k: v for k, v in job.function_kwargs.items() if k != "prev_dir"}
    protocol = (job.metadata or {}).get("protocol_id")
    content = [type(maker).__qualname__, job.name, protocol, settings, list(job.function_args), arguments]
    return content_id("w", jsanitize(content, strict=True, enum_values=True))


def adopt(job: Job, work: str, store: JobStore) -> Any:
    """Return the output of the same work if the store has it, and store it as this job's; ``None`` if it has not.

    A VASP run that was stopped before its end has not done the work, although it calls itself successful.
    """
    from monty.json import MontyDecoder

    from fireworks_specs.backends.vasp_failures import WALLTIME

    whole = {"output.custodian.corrections.handler.@class": {"$nin": list(WALLTIME)}}
    found = store.docs_store.query_one({"metadata.work": work, **whole}, sort={"completed_at": 1})
    if found is None:
        return None
    LOG.info("%s was done before (job %s)", job.name, found["uuid"])
    metadata = {**job.metadata, "adopted": found["metadata"].get("adopted") or found["uuid"]}
    mine = {"uuid": job.uuid, "index": job.index, "name": job.name, "hosts": job.hosts, "metadata": metadata}
    document = {key: value for key, value in found.items() if key != "_id"} | mine
    store.docs_store.update(document, key=["uuid", "index"])
    return MontyDecoder().process_decoded(found["output"])


def _forget_lost_folder(job: Job) -> None:
    """Let a job begin from its crystal alone where the folder that it would copy from is not on this machine."""
    folder = job.function_kwargs.get("prev_dir")
    if folder is not None and not Path(str(folder).rpartition(":")[2]).is_dir():
        LOG.info("%s begins without the files of %s, which is not here", job.name, folder)
        job.function_kwargs["prev_dir"] = None
