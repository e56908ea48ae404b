"""maggma builders that derive candidates, queues, training sets and campaign metrics."""
