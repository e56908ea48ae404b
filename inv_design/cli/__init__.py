"""The command line `inv-design`: one file per noun, loaded only when its command is called."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

import click

from inv_design import __version__
from inv_design.cli import errors
from inv_design.cli.lazy import LazyGroup, Table
from inv_design.cli.options import Settings, common_options

COMMANDS: Table = {
    "init": ("init:init", "Write a commented campaign.yaml into a new directory."),
    "check": ("check:check", "Test every part that a campaign needs; show a tick or the cure."),
    "ingest": ("ingest:ingest", "Read crystals and their labels from files into the database."),
    "run": ("run:run", "Plan and execute the rounds of a campaign in this process, from wherever it stands."),
    "launch": ("launch:launch", "Put the workflows of a round on the launchpad, and leave them to the workers."),
    "build": (
        "build:build",
        "Build the derived records of a campaign: candidates at a glance, queue, numbers of the rounds.",
    ),
    "lpad": ("lpad:lpad", "Call FireWorks' lpad with ARGUMENTS on the launchpad of this campaign."),
    "doctor": ("doctor:doctor", "Find fireworks that are lost, say why, and rerun them."),
    "status": ("status:status", "Show the funnel: how many candidates passed, failed or wait, and why."),
    "query": ("query:query", "List candidates that match conditions."),
    "show": ("show:show", "Show all numbers of one candidate."),
    "why": ("why:why", "Say why a candidate is where it is."),
    "lineage": ("lineage:lineage", "Show where a record came from, or what came of it."),
    "diff": ("diff:diff", "Compare two campaigns or two rounds."),
    "predict": ("predict:predict", "Predict a property of the crystals in files."),
    "generate": ("generate:generate", "Generate crystals for a target property."),
    "elastic": ("elastic:elastic", "Relax crystals and calculate their elastic tensors."),
    "train-mlip": ("train_mlip:train_mlip", "Fine-tune a machine-learned potential on the labels of a campaign."),
    "dft": ("dft:dft", "Choose the settings of a DFT backend."),
    "metrics": ("metrics:metrics", "Measure validity, uniqueness, novelty and target error of crystals in a file."),
    "training-set": ("training_set:training_set", "List, show and compare training sets."),
    "trust": ("trust:trust", "Show how far predictor, potential and stages can be trusted."),
    "report": ("report:report", "Write one self-contained HTML page about a campaign."),
    "export": ("export:export", "Write a campaign into one file, for others or for later."),
    "import": ("import_archive:import_archive", "Read archives of campaigns into the database."),
    "db": ("db:db", "Set up, index, check, migrate, share and move the database."),
}


ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # small crystals on shared cores: more threads are many times slower
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "SPGLIB_WARNING": "OFF",  # it writes to standard error from C
}
"""What libraries read when they are imported; what the user has set is kept."""


class Commands(LazyGroup):
    """The commands of `inv-design`; turns errors into one line."""

    table = COMMANDS

    def main(self, args: Any = None, prog_name: str | None = None, *more: Any, **extra: Any) -> Any:
        """Run the command line and exit with 0 done, 1 failed, 2 wrong usage, 3 nothing matched, 130 interrupted."""
        for variable, value in ENVIRONMENT.items():
            os.environ.setdefault(variable, value)
        settings = extra.setdefault("obj", Settings())
        os.environ.setdefault("SPGLIB_WARNING", "OFF")  # it writes to stderr from C, and odd cells are normal here
        extra["standalone_mode"] = False
        with warnings.catch_warnings():
            if not sys.warnoptions:  # python -W shows them
                warnings.simplefilter("ignore")
            try:
                code = super().main(args, prog_name or "inv-design", *more, **extra)
            except Exception as error:
                code = errors.report(error, debug=settings.debug)
        sys.exit(code if isinstance(code, int) else errors.DONE)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="inv-design")
@common_options
def main() -> None:
    """Manage campaigns of inverse materials design.

    Generate crystals for a target property, screen them in stages of rising cost, label the survivors, retrain, repeat.
    Every record is in the campaign's database.
    """
