"""Property predictors: crystal graph networks and descriptor baselines, with uncertainty."""
