"""maggma builders that derive candidates, queues, training sets and campaign metrics.

``builders.run.build_campaign(name)`` builds in this process. The same builders run under maggma's own ``mrun``, on any
machine that reaches the database::

    export INV_DESIGN_DATABASE=mongodb://host/db          # the password: INV_DESIGN_DATABASE_PASSWORD
    mrun builders/mrun/campaign.json                      # summaries, queue and metrics, in this order
    mrun -n 8 builders/mrun/candidates.json               # one builder, eight processes

A spec builds for all campaigns (``"campaign": null``); write a name instead to build for one. Builders find the
database through this process's connection or ``INV_DESIGN_DATABASE``; a spec holds no credentials.

They write only the derived collections that they own, except :mod:`builders.training_set`, which inserts immutable
snapshots. Documents carry ``input_hash`` and ``builder_version``: what is up to date is not built again, and a change
in settings or code rebuilds. Where the ids of all inputs are those of the last run (:mod:`builders.state`), nothing
else is read. An item that fails becomes a document with ``state: failed`` and its ``error``.
"""
